"""What can go wrong between a topic and its reader, by each client, on Apache Kafka."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest
from confluent_kafka import KafkaError, Producer
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from contracts.records import Offsets, Record
from contracts.settings import KafkaSettings
from streamer.broker import create_topics
from streamer.sources.confluent import ConfluentSource
from streamer.sources.kafka import OffsetsLostError
from streamer.sources.topic import open_topic

pytestmark = pytest.mark.kafka


@pytest.fixture(params=["kafka-python", "confluent"])
def open_source(request: pytest.FixtureRequest, topic: str) -> Callable[..., Any]:
    """Opens the topic by each client in turn."""

    def open_(
        servers: str,
        resume: Offsets | None = None,
        start_ms: int | None = None,
        **more: object,
    ) -> Any:
        values = {"bootstrap_servers": servers, "topic": topic, "group": topic, "session_timeout": "1s", **more}
        settings = KafkaSettings.model_validate({"client": request.param, **values})
        return open_topic(settings, resume, start_ms=start_ms)

    return open_


def produce(broker: str, topic: str, times_ms: Iterator[int] | range, partition: int = 0) -> None:
    """A record for each time, which is also its value."""
    producer = KafkaProducer(bootstrap_servers=broker, enable_idempotence=False, linger_ms=5)
    for time_ms in times_ms:
        producer.send(topic, value=b"%d" % time_ms, partition=partition, timestamp_ms=time_ms)
    producer.flush()
    producer.close()


def read_to_end(source: Any, seconds: float = 30) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + seconds
    while not source.caught_up():
        assert time.monotonic() < deadline, f"only {len(records)} records, at {source.position()}"
        records += source.poll(100)
    return records


def values(records: list[Record]) -> list[int]:
    return [int(record.value) for record in records]


# --- a replay from a time ---


def test_a_replay_starts_each_partition_at_its_first_record_of_the_time_or_later(
    open_source: Any, apache_kafka: str, topic: str
) -> None:
    create_topics(apache_kafka, {topic: 3})
    produce(apache_kafka, topic, range(1_000, 1_010), partition=0)
    produce(apache_kafka, topic, range(990, 1_000), partition=1)
    with open_source(apache_kafka, start_ms=1_004) as source:
        # The second has none that late, the third has none at all: both start at their end.
        assert source.position() == {(topic, 0): 4, (topic, 1): 10, (topic, 2): 0}
        assert values(read_to_end(source)) == list(range(1_004, 1_010))
        produce(apache_kafka, topic, range(1, 3), partition=1)
        records: list[Record] = []
        while len(records) < 2:
            records += source.poll(100)
        assert values(records) == [1, 2]


def test_a_snapshot_outweighs_the_time_of_a_replay(open_source: Any, apache_kafka: str, topic: str) -> None:
    create_topics(apache_kafka, {topic: 1})
    produce(apache_kafka, topic, range(10))
    with open_source(apache_kafka, resume={(topic, 0): 8}, start_ms=3) as source:
        assert values(read_to_end(source)) == [8, 9]


# --- records that are gone ---


def delete_before(broker: str, topic: str, offset: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.delete_records({TopicPartition(topic, 0): offset})
    admin.close()


def test_what_retention_deleted_is_skipped_and_counted_where_the_settings_say_so(
    open_source: Any, apache_kafka: str, topic: str
) -> None:
    create_topics(apache_kafka, {topic: 2})
    produce(apache_kafka, topic, range(20))
    produce(apache_kafka, topic, range(100, 110), partition=1)
    delete_before(apache_kafka, topic, 12)
    with open_source(apache_kafka, {(topic, 0): 5, (topic, 1): 7}, missing_offsets="skip") as source:
        assert source.condition().skipped == {}
        records = sorted(read_to_end(source))
        assert values(records) == [*range(12, 20), *range(107, 110)]
        assert source.condition().skipped == {(topic, 0): 7}
        assert source.position() == {(topic, 0): 20, (topic, 1): 10}


def test_what_retention_deletes_while_it_waits_to_be_read_is_skipped_too(
    open_source: Any, apache_kafka: str, topic: str
) -> None:
    """All of it is gone: reading goes on with what comes next."""
    create_topics(apache_kafka, {topic: 1})
    produce(apache_kafka, topic, range(20))
    delete_before(apache_kafka, topic, 20)
    with open_source(apache_kafka, {(topic, 0): 5}, missing_offsets="skip") as source:
        assert read_to_end(source) == []
        produce(apache_kafka, topic, range(20, 25))
        records: list[Record] = []
        while len(records) < 5:
            records += source.poll(100)
        assert values(records) == list(range(20, 25))
        assert source.condition().skipped == {(topic, 0): 15}


class Stuttering:
    """A consumer of confluent-kafka that tells each lost offset a second time, behind what is read meanwhile."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._lost: list[Any] = []
        self.n_repeated = 0

    def consume(self, n_most: int, timeout: float) -> list[Any]:
        found = list(self._consumer.consume(n_most, timeout))
        if self._lost and any(message.error() is None for message in found):
            self.n_repeated += len(self._lost)
            found, self._lost = [*found, *self._lost], []
        elif not self.n_repeated:
            lost = KafkaError._AUTO_OFFSET_RESET
            self._lost += [message for message in found if message.error() and message.error().code() == lost]
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)


def test_a_lost_offset_that_the_client_tells_twice_is_skipped_once(apache_kafka: str, topic: str) -> None:
    """librdkafka does so now and then: the second time of an offset that was left meanwhile."""
    create_topics(apache_kafka, {topic: 1})
    produce(apache_kafka, topic, range(20))
    delete_before(apache_kafka, topic, 12)
    kafka = {"bootstrap_servers": apache_kafka, "topic": topic, "group": topic, "session_timeout": "1s"}
    settings = KafkaSettings.model_validate({**kafka, "client": "confluent", "missing_offsets": "skip"})
    with ConfluentSource(settings, {(topic, 0): 5}) as source:
        stuttering: Any = Stuttering(source._consumer)
        source._consumer = stuttering
        assert values(read_to_end(source)) == list(range(12, 20))
        assert stuttering.n_repeated == 1
        assert source.poll(100) == []
        assert source.condition().skipped == {(topic, 0): 7}


def test_a_session_may_be_longer_than_the_clients_longest_time_without_a_poll(
    open_source: Any, apache_kafka: str, topic: str
) -> None:
    create_topics(apache_kafka, {topic: 1})
    produce(apache_kafka, topic, range(3))
    with open_source(apache_kafka, session_timeout="10m") as source:
        assert values(read_to_end(source)) == [0, 1, 2]


def test_an_offset_beyond_the_end_is_an_error_also_where_deleted_ones_are_skipped(
    open_source: Any, apache_kafka: str, topic: str
) -> None:
    create_topics(apache_kafka, {topic: 1})
    produce(apache_kafka, topic, range(20))
    with (
        open_source(apache_kafka, {(topic, 0): 50}, missing_offsets="skip") as source,
        pytest.raises(OffsetsLostError, match=r"wants offset 50, the broker has 0 to 20") as told,
    ):
        read_to_end(source)
    assert "missing_offsets" not in str(told.value)


def test_the_error_about_deleted_records_names_the_setting_that_skips_them(
    open_source: Any, apache_kafka: str, topic: str
) -> None:
    create_topics(apache_kafka, {topic: 1})
    produce(apache_kafka, topic, range(20))
    delete_before(apache_kafka, topic, 12)
    with (
        open_source(apache_kafka, {(topic, 0): 5}) as source,
        pytest.raises(OffsetsLostError, match=rf'{topic}\[0\]: wants offset 5, .* 12 to 20.*missing_offsets = "skip"'),
    ):
        read_to_end(source)


# --- offsets without a record ---


def test_of_many_transactions_only_the_committed_ones_are_read_and_resumed_between(
    open_source: Any, apache_kafka: str, topic: str
) -> None:
    """Every third is aborted, some after their records were stored; the last one is still open at first."""
    create_topics(apache_kafka, {topic: 2})
    producer = Producer({"bootstrap.servers": apache_kafka, "transactional.id": topic})
    producer.init_transactions()
    committed: list[int] = []
    for n in range(30):
        producer.begin_transaction()
        for value in range(10 * n, 10 * n + 10):
            producer.produce(topic, value=b"%d" % value, partition=value % 2)
        producer.flush()
        if n == 29:
            break
        if n % 3 == 1:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
            committed += range(10 * n, 10 * n + 10)
    with open_source(apache_kafka, max_poll_records=50) as source:
        records: list[Record] = []
        while len(records) < len(committed) // 2:
            records += source.poll(100)
        position = source.position()
    with open_source(apache_kafka, position) as source:
        while len(records) < len(committed):
            records += source.poll(100)
        assert source.poll(300) == []
        producer.commit_transaction()
        committed += range(290, 300)
        while len(records) < len(committed):
            records += source.poll(100)
    assert sorted(values(records)) == committed


def test_a_compacted_topic_is_read_over_its_gaps_and_resumed_inside_one(
    open_source: Any, apache_kafka: str, topic: str
) -> None:
    admin = KafkaAdminClient(bootstrap_servers=apache_kafka)
    config = {"cleanup.policy": "compact", "segment.ms": "50", "min.cleanable.dirty.ratio": "0.01"}
    admin.create_topics([NewTopic(topic, 1, 1, topic_configs=config)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=apache_kafka, enable_idempotence=False)
    for n in range(30):  # the keys 0 and 1, again and again, and one of its own at the end of each ten
        producer.send(topic, key=b"%d" % (n if n % 10 == 9 else n % 2), value=b"%d" % n).get(10)
    deadline = time.monotonic() + 30
    while True:
        time.sleep(0.1)
        producer.send(topic, key=b"last", value=b"-1").get(10)  # rolls the segment
        with open_source(apache_kafka, group=f"{topic}-{time.monotonic()}") as source:
            offsets = [record.offset for record in read_to_end(source)]
        if offsets[:5] == [9, 19, 27, 28, 29]:
            break
        assert time.monotonic() < deadline, offsets
    producer.close()
    with open_source(apache_kafka, {(topic, 0): 12}) as source:
        assert [record.offset for record in read_to_end(source)][:4] == [19, 27, 28, 29]
        assert source.condition().skipped == {}


# --- connections that break ---


class CuttingProxy:
    """Forwards connections; one after the other breaks off once it has carried so many bytes to the client.

    With a reset, in the middle of whatever is being sent. Without limits left, nothing breaks any more.
    """

    def __init__(self, port: int, to_port: int, limits: list[int]) -> None:
        self.n_cut = 0
        self._to_port = to_port
        self._limits = limits
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            broker = socket.create_connection(("127.0.0.1", self._to_port))
            self._open += [client, broker]
            for source, target, counts in ((client, broker, False), (broker, client, True)):
                self._threads.append(threading.Thread(target=self._forward, args=(source, target, counts), daemon=True))
                self._threads[-1].start()

    def _forward(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        n_bytes = 0
        try:
            while data := source.recv(4096):
                n_bytes += len(data)
                with self._lock:
                    cut = counts and bool(self._limits) and n_bytes > self._limits[0]
                    if cut:
                        self._limits.pop(0)
                        self.n_cut += 1
                if cut:
                    target.sendall(data[: len(data) // 2])
                    target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            end.close()
        for thread in self._threads:
            thread.join(5)


def test_a_connection_that_breaks_in_the_middle_of_a_fetch_costs_no_record(
    open_source: Any, apache_broker: Any, topic: str
) -> None:
    create_topics(apache_broker.bootstrap_servers, {topic: 2})
    padding = b" " * 500
    producer = KafkaProducer(bootstrap_servers=apache_broker.bootstrap_servers, enable_idempotence=False, linger_ms=5)
    for n in range(3_000):
        producer.send(topic, value=b"%d" % n + padding, partition=n % 2)
    producer.close()
    limits = [20_000, 40_000, 100_000, 300_000, 300_000, 600_000]
    with (
        CuttingProxy(apache_broker.proxy, apache_broker.behind, list(limits)) as proxy,
        open_source(f"127.0.0.1:{apache_broker.proxy}") as source,
    ):
        records = read_to_end(source, 60)
    assert proxy.n_cut == len(limits)
    for partition in (0, 1):
        found = [record for record in records if record.partition == partition]
        assert values(found) == list(range(partition, 3_000, 2))
        assert [record.offset for record in found] == list(range(1_500))
