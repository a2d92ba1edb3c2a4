import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from contracts.records import Offsets, Record
from contracts.settings import KafkaSettings
from streamer.broker import BrokerError, StopAskedError, create_topics
from streamer.sources.confluent import ConfluentSource
from streamer.sources.kafka import KafkaSource, OffsetsLostError
from streamer.sources.topic import open_topic

TopicSource = KafkaSource | ConfluentSource
Open = Callable[..., TopicSource]


CLIENTS = ("kafka-python", "confluent")


def _open(
    client: str,
    broker: str,
    topic: str,
    resume: Offsets | None = None,
    connect_timeout_ms: int = 30_000,
    stop: Callable[[], bool] = lambda: False,
    **more: object,
) -> TopicSource:
    values = {"bootstrap_servers": broker, "topic": topic, "group": f"group-{topic}", "session_timeout": "1s", **more}
    settings = KafkaSettings.model_validate({"client": client, **values})
    return open_topic(settings, resume, connect_timeout_ms=connect_timeout_ms, stop=stop)


@pytest.fixture(params=CLIENTS)
def open_source(request: pytest.FixtureRequest) -> Open:
    """Opens a topic by each client in turn: ``open_source(broker, topic, resume=…, **settings)``."""
    return partial(_open, request.param)


def _produce(broker: str, topic: str, n_records: int, partition: int = 0, start: int = 0) -> None:
    producer = KafkaProducer(bootstrap_servers=broker, enable_idempotence=False, linger_ms=5)
    for n in range(start, start + n_records):
        producer.send(topic, value=b"%d" % n, partition=partition, timestamp_ms=1000 + n)
    producer.flush()
    producer.close()


def _read_until(source: TopicSource, done: Callable[[list[Record]], bool], seconds: float = 30) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + seconds
    while not done(records):
        assert time.monotonic() < deadline, f"only {len(records)} records, at {source.position()}"
        records += source.poll(100)
    return records


def _read_to_end(source: TopicSource) -> list[Record]:
    return _read_until(source, lambda _: source.caught_up())


def _values(records: list[Record]) -> list[int]:
    return [int(record.value) for record in records]


def test_records_come_with_their_place_and_time(open_source: Open, broker: str, topic: str) -> None:
    create_topics(broker, {topic: 1})
    _produce(broker, topic, 3)
    with open_source(broker, topic) as source:
        assert _read_to_end(source) == [Record(topic, 0, n, None, b"%d" % n, 1000 + n) for n in range(3)]
        assert source.position() == {(topic, 0): 3}
        assert not source.ended


def test_a_topic_without_records_is_caught_up_and_has_a_position(open_source: Open, broker: str, topic: str) -> None:
    create_topics(broker, {topic: 2})
    with open_source(broker, topic) as source:
        assert not source.caught_up()  # nothing is assigned yet
        assert _read_to_end(source) == []
        assert source.position() == {(topic, 0): 0, (topic, 1): 0}


def test_a_tombstone_comes_with_an_empty_value(open_source: Open, broker: str, topic: str) -> None:
    create_topics(broker, {topic: 1})
    producer = KafkaProducer(bootstrap_servers=broker, enable_idempotence=False)
    producer.send(topic, key=b"k", value=None).get(10)
    producer.close()
    with open_source(broker, topic) as source:
        (record,) = _read_to_end(source)
    assert (record.key, record.value) == (b"k", b"")


def test_the_snapshot_decides_where_to_resume_not_the_group(open_source: Open, broker: str, topic: str) -> None:
    create_topics(broker, {topic: 1})
    _produce(broker, topic, 10)
    with open_source(broker, topic) as source:
        _read_to_end(source)
        source.commit({(topic, 0): 10})
        _committed(broker, topic, wait_for=10)
    with open_source(broker, topic, resume={(topic, 0): 4}) as source:
        assert _values(_read_to_end(source)) == [4, 5, 6, 7, 8, 9]
    with open_source(broker, topic) as source:
        assert _values(_read_to_end(source)) == list(range(10))


def _committed(broker: str, topic: str, wait_for: int) -> None:
    """Wait until the group's committed offset is there; it must become this one."""
    consumer = KafkaConsumer(bootstrap_servers=broker, group_id=f"group-{topic}", enable_auto_commit=False)
    try:
        deadline = time.monotonic() + 10
        while (found := consumer.committed(TopicPartition(topic, 0))) != wait_for:
            assert time.monotonic() < deadline, f"committed: {found}"
            time.sleep(0.05)
    finally:
        consumer.close()


def test_a_partition_that_the_snapshot_does_not_name_starts_at_its_beginning(
    open_source: Open, broker: str, topic: str
) -> None:
    create_topics(broker, {topic: 2})
    _produce(broker, topic, 3, partition=0)
    _produce(broker, topic, 3, partition=1)
    with open_source(broker, topic, start="latest", resume={(topic, 0): 2}) as source:
        records = _read_to_end(source)
    assert sorted((record.partition, record.offset) for record in records) == [(0, 2), (1, 0), (1, 1), (1, 2)]


def test_a_snapshot_that_read_nothing_is_a_snapshot(open_source: Open, broker: str, topic: str) -> None:
    create_topics(broker, {topic: 1})
    _produce(broker, topic, 3)
    with open_source(broker, topic, start="latest", resume={}) as source:
        assert _values(_read_to_end(source)) == [0, 1, 2]


@pytest.mark.kafka
def test_latest_skips_what_is_there_and_its_position_says_so(open_source: Open, apache_kafka: str, topic: str) -> None:
    create_topics(apache_kafka, {topic: 1})
    _produce(apache_kafka, topic, 5)
    with open_source(apache_kafka, topic, start="latest") as source:
        assert _read_to_end(source) == []
        position = source.position()
    assert position == {(topic, 0): 5}
    _produce(apache_kafka, topic, 2, start=5)
    with open_source(apache_kafka, topic, start="latest", resume=position) as source:
        assert _values(_read_to_end(source)) == [5, 6]


def test_the_position_of_a_resume_stands_before_the_first_poll(open_source: Open, broker: str, topic: str) -> None:
    create_topics(broker, {topic: 1})
    with open_source(broker, topic, resume={(topic, 0): 0}) as source:
        assert source.position() == {(topic, 0): 0}


@pytest.mark.parametrize(("name", "partition", "offset"), [("other", 0, 1), ("", 3, 7), ("", 0, -1)])
def test_offsets_of_something_else_are_refused(
    open_source: Open, name: str, partition: int, offset: int, embedded_broker: str, topic: str
) -> None:
    create_topics(embedded_broker, {topic: 1})
    with pytest.raises(ValueError, match=f"does not fit topic `{topic}` with 1 partitions"):
        open_source(embedded_broker, topic, resume={(name or topic, partition): offset})


def test_an_offset_beyond_the_end_is_an_error_not_a_silence(open_source: Open, broker: str, topic: str) -> None:
    create_topics(broker, {topic: 2})
    _produce(broker, topic, 5)
    with (
        open_source(broker, topic, resume={(topic, 0): 50}) as source,
        pytest.raises(OffsetsLostError, match=rf"{topic}\[0\]: wants offset 50, the broker has 0 to 5"),
    ):
        _read_until(source, lambda _: False)


@pytest.mark.kafka
def test_an_offset_that_retention_deleted_is_an_error_not_a_jump(
    open_source: Open, apache_kafka: str, topic: str
) -> None:
    create_topics(apache_kafka, {topic: 1})
    _produce(apache_kafka, topic, 20)
    _delete_before(apache_kafka, topic, 12)
    with (
        open_source(apache_kafka, topic, resume={(topic, 0): 5}) as source,
        pytest.raises(OffsetsLostError, match=rf"{topic}\[0\]: wants offset 5, the broker has 12 to 20"),
    ):
        _read_until(source, lambda _: False)
    with open_source(apache_kafka, topic) as source:
        assert _values(_read_to_end(source)) == list(range(12, 20))


def _delete_before(broker: str, topic: str, offset: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.delete_records({TopicPartition(topic, 0): offset})
    admin.close()


@pytest.mark.kafka
def test_an_emptied_partition_is_caught_up(open_source: Open, apache_kafka: str, topic: str) -> None:
    create_topics(apache_kafka, {topic: 1})
    _produce(apache_kafka, topic, 20)
    _delete_before(apache_kafka, topic, 20)
    with open_source(apache_kafka, topic) as source:
        assert _read_to_end(source) == []
        assert source.position() == {(topic, 0): 20}


@pytest.mark.kafka
def test_aborted_records_do_not_come_and_do_not_hold_up_the_end(
    open_source: Open, apache_kafka: str, topic: str
) -> None:
    create_topics(apache_kafka, {topic: 1})
    producer = KafkaProducer(bootstrap_servers=apache_kafka, transactional_id=topic)
    producer.init_transactions()
    for value, finish in ((b"1", producer.commit_transaction), (b"2", producer.abort_transaction)):
        producer.begin_transaction()
        producer.send(topic, value=value, partition=0)
        producer.flush()
        finish()
    producer.close()
    with open_source(apache_kafka, topic) as source:
        assert _values(_read_to_end(source)) == [1]
        assert source.lag() == {(topic, 0): 0}


@pytest.mark.kafka
def test_the_lag_is_what_was_not_read(open_source: Open, apache_kafka: str, topic: str) -> None:
    create_topics(apache_kafka, {topic: 1})
    _produce(apache_kafka, topic, 50)
    with open_source(apache_kafka, topic, max_poll_records=20) as source:
        records = _read_until(source, bool)
        assert source.lag() == {(topic, 0): 50 - len(records)}


@pytest.fixture
def members(open_source: Open, broker: str, topic: str) -> Iterator[Callable[[], "_Member"]]:
    started: list[_Member] = []

    def start() -> "_Member":
        # Longer than a loaded machine is silent: a member that is thrown out would read the share of the other.
        started.append(_Member(lambda: open_source(broker, topic, session_timeout="4s")))
        return started[-1]

    yield start
    for member in started:
        member.leave()


class _Member:
    """A source in a thread of its own, as a process of the group would have one."""

    def __init__(self, open_its_source: Callable[[], TopicSource]) -> None:
        self.records: list[Record] = []
        self.position: Offsets = {}
        self._open = open_its_source
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._open() as source:
            while not self._left.is_set():
                self.records += source.poll(50)
                self.position = source.position()

    def leave(self) -> None:
        self._left.set()
        self._thread.join()


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_partition_that_comes_back_goes_on_where_this_member_stood_and_meanwhile_its_absence_is_told(
    broker: str, topic: str, members: Callable[[], _Member], caplog: pytest.LogCaptureFixture
) -> None:
    create_topics(broker, {topic: 2})
    for partition in (0, 1):
        _produce(broker, topic, 10, partition)
    first = members()
    _wait(lambda: len(first.records) == 20, "the first member reads all")
    assert "to another member" not in caplog.text
    second = members()
    # Nobody committed: without a snapshot the newcomer starts its share at the beginning.
    _wait(lambda: len(second.records) == 10, "the second member gets one partition")
    for partition in (0, 1):
        _produce(broker, topic, 5, partition, start=10)
    _wait(lambda: len(second.records) == 15 and len(first.records) == 25, "each reads its share")
    for partition in (0, 1):
        told = f"Group `group-{topic}` gave {topic}[{partition}] to another member, and this model does not learn"
        assert told in caplog.text
    caplog.clear()
    second.leave()
    _wait(lambda: len(first.records) == 30, "the first takes up the other partition where it stood itself")
    places = [record[1:3] for record in first.records]
    assert sorted(places) == [(partition, offset) for partition in (0, 1) for offset in range(15)]
    assert first.position == {(topic, 0): 15, (topic, 1): 15}
    assert "to another member" not in caplog.text


@pytest.mark.kafka
@pytest.mark.slow
def test_reading_goes_on_when_the_broker_comes_back_and_closing_without_it_does_not_hang(
    apache_broker: Any, topic: str
) -> None:
    servers = apache_broker.bootstrap_servers
    create_topics(servers, {topic: 1})
    _produce(servers, topic, 10)
    sources = [_open(client, servers, topic, group=f"{client}-{topic}") for client in CLIENTS]
    try:
        before = [_read_to_end(source) for source in sources]
        apache_broker.restart()
        _produce(servers, topic, 10, start=10)
        for first, source in zip(before, sources, strict=True):
            after = _read_until(source, lambda records: len(records) >= 10, seconds=60)
            assert _values(first + after) == list(range(20))
        apache_broker.halt()
    finally:
        started = time.monotonic()
        for source in sources:
            source.close()
        took_seconds = time.monotonic() - started
        if not apache_broker.running:
            apache_broker.start()
    assert took_seconds < 2 * 12


def _widen(kafka: str, topic: str, n_partitions: int) -> None:
    """Give the topic that many partitions."""
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_partitions({topic: n_partitions})
    admin.wait_for_topics([topic])
    admin.close()


@pytest.mark.kafka
def test_a_partition_that_is_added_later_is_read_from_its_beginning(
    open_source: Open, apache_kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for client in ("kafka", "confluent"):
        monkeypatch.setattr(f"streamer.sources.{client}.METADATA_AGE_MS", 500)
    create_topics(apache_kafka, {topic: 1})
    with open_source(apache_kafka, topic, start="latest") as source:
        assert _read_to_end(source) == []
        _widen(apache_kafka, topic, 2)
        _produce(apache_kafka, topic, 3, partition=1)
        assert _values(_read_until(source, lambda records: len(records) >= 3)) == [0, 1, 2]


@pytest.mark.kafka
def test_a_rebalance_that_outlasts_a_poll_is_taken_up_by_the_next_one(
    open_source: Open, apache_kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time partitions are added, a member asks for its share anew; here no poll waits until it is given."""
    for client in ("kafka", "confluent"):
        monkeypatch.setattr(f"streamer.sources.{client}.METADATA_AGE_MS", 100)
    create_topics(apache_kafka, {topic: 1})
    with open_source(apache_kafka, topic, session_timeout="6s") as source:
        assert _read_to_end(source) == []
        for n_partitions in range(2, 8):
            _widen(apache_kafka, topic, n_partitions)
            _produce(apache_kafka, topic, 3, partition=n_partitions - 1)
            records: list[Record] = []
            deadline = time.monotonic() + 20
            while len(records) < 3:
                assert time.monotonic() < deadline, f"stands still with {n_partitions} partitions"
                records += source.poll(1)
            assert _values(records) == [0, 1, 2]


@pytest.mark.kafka
@pytest.mark.parametrize(("client", "told_by"), [("confluent", "heartbeat"), *((one, "commit") for one in CLIENTS)])
def test_a_member_whose_name_another_has_taken_is_told(
    apache_kafka: str, topic: str, client: str, told_by: str
) -> None:
    create_topics(apache_kafka, {topic: 1})
    # A heartbeat each half a second, or each 3 s. Not less: under load a member of 1 s is lost without any fault.
    session = "6s" if told_by == "heartbeat" else "5m"
    how = {"instance": "learner", "session_timeout": session}
    with _open(client, apache_kafka, topic, **how) as older:
        # Before the other is made: both join by themselves, and the group takes the last to come for the newer one.
        _read_to_end(older)
        with _open(client, apache_kafka, topic, **how) as newer:
            _read_to_end(newer)
            if told_by == "commit":
                older.commit({(topic, 0): 0})
            with pytest.raises(BrokerError, match=r"Another process reads .* as kafka\.instance = `learner`"):
                _read_until(older, lambda _: False)
            newer.poll(100)


def test_an_absent_topic_is_named(open_source: Open, broker: str, topic: str) -> None:
    with pytest.raises(BrokerError, match=f"Topic `{topic}` does not exist at `{broker}`"):
        open_source(broker, topic, connect_timeout_ms=300)


def test_a_wait_for_a_topic_ends_when_asked_to_stop(open_source: Open, embedded_broker: str, topic: str) -> None:
    with pytest.raises(StopAskedError, match=f"waiting for topic `{topic}`"):
        open_source(embedded_broker, topic, stop=lambda: True)


def test_auto_takes_confluent_where_it_is_installed(
    embedded_broker: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_topics(embedded_broker, {topic: 1})
    with _open("auto", embedded_broker, topic) as source:
        assert isinstance(source, ConfluentSource)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with _open("auto", embedded_broker, topic) as source:
        assert isinstance(source, KafkaSource)
    with pytest.raises(BrokerError, match=r'not installed: pip install "anabranch\[confluent\]"'):
        _open("confluent", embedded_broker, topic)


def test_a_topic_that_comes_later_is_waited_for(open_source: Open, broker: str, topic: str) -> None:
    timer = threading.Timer(0.5, create_topics, (broker, {topic: 1}))
    timer.start()
    with open_source(broker, topic) as source:
        assert _read_to_end(source) == []
    timer.join()


def test_an_absent_broker_is_named(open_source: Open) -> None:
    with pytest.raises(BrokerError, match=r"No Kafka broker answers at `127\.0\.0\.1:1`"):
        open_source("127.0.0.1:1", "events", connect_timeout_ms=300)


def test_a_commit_before_anything_is_assigned_is_no_error(open_source: Open, embedded_broker: str, topic: str) -> None:
    create_topics(embedded_broker, {topic: 1})
    with open_source(embedded_broker, topic) as source:
        source.commit({(topic, 0): 0})
