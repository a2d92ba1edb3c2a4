"""A partition whose leader moves from one broker to another while it is written and read, by each client."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Producer
from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import ElectionNotNeededError

from contracts.records import Record
from contracts.settings import KafkaSettings
from streamer.sources.topic import open_topic

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(180)]

FIRST, SECOND = 1, 2
OFFSETS = "__consumer_offsets"
PATIENCE_SECONDS = 40.0
A_WHILE = 200
"""Records read between one move and the next."""


class Cluster:
    """Two brokers; the second leads the topic's first partition and the group's offsets, until a test moves them."""

    def __init__(self, first: Any, second: Any, topic: str) -> None:
        self.second = second
        self.servers = f"{first.bootstrap_servers},{second.bootstrap_servers}"
        self._first = first.bootstrap_servers
        self._moved = [TopicPartition(topic, 0), TopicPartition(OFFSETS, 0)]
        missing = {topic: {"assignments": {0: [SECOND, FIRST], 1: [FIRST, SECOND]}}}
        with self._admin() as admin:
            if OFFSETS not in admin.list_topics():  # the group's coordinator is who leads it
                missing[OFFSETS] = {"assignments": {0: [SECOND, FIRST]}, "configs": {"cleanup.policy": "compact"}}
            admin.create_topics(missing)
            admin.wait_for_topics(list(missing))
        self.lead_by(SECOND)

    def lead_by(self, node: int) -> None:
        """Have this broker lead, once it has all records, while the other one stays alive."""
        self._until(lambda place: sorted(place["isr_nodes"]) == [FIRST, SECOND])
        with self._admin() as admin:
            admin.alter_partition_reassignments({place: [node, FIRST + SECOND - node] for place in self._moved})
        self._until(lambda place: place["replica_nodes"][0] == node)
        with self._admin() as admin:
            for topic, partition in self._moved:
                with contextlib.suppress(ElectionNotNeededError):
                    admin.elect_leaders(0, {topic: [partition]})
        self.wait_for_leader(node)

    def wait_for_leader(self, node: int) -> None:
        self._until(lambda place: place["leader_id"] == node)

    def _admin(self) -> Any:
        # A new one each time: it goes on asking the broker that it was told to, gone or not.
        return contextlib.closing(KafkaAdminClient(bootstrap_servers=self._first))

    def _until(self, is_so: Callable[[dict[str, Any]], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with self._admin() as admin:
                topics = admin.describe_topics([place.topic for place in self._moved])
            places = [one for topic in topics for one in topic["partitions"] if one["partition_index"] == 0]
            if all(map(is_so, places)):
                return
            assert time.monotonic() < deadline, places
            time.sleep(0.05)


class Load:
    """Writes numbers in turn to two partitions, 500 a second, until it is stopped."""

    def __init__(self, servers: str, topic: str) -> None:
        self.n_written = 0
        self._topic = topic
        self._stopped = threading.Event()
        # Idempotent: what is sent again because its leader moved is stored once, and in order.
        self._producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 5})
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.002):
            self._producer.produce(self._topic, value=b"%d" % self.n_written, partition=self.n_written % 2)
            self._producer.poll(0)
            self.n_written += 1

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        assert self._producer.flush(PATIENCE_SECONDS) == 0


@pytest.fixture
def cluster(two_brokers: tuple[Any, Any], topic: str) -> Cluster:
    return Cluster(*two_brokers, topic)


@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_a_leader_that_moves_to_another_broker_costs_no_record_and_repeats_none(
    client: str, cluster: Cluster, topic: str
) -> None:
    """Between live brokers, then because one is stopped and comes back; the group's coordinator moves along."""
    records: list[Record] = []
    failed: list[BaseException] = []

    def read_on() -> None:
        seen, deadline = len(records), time.monotonic() + PATIENCE_SECONDS
        while len(records) < seen + A_WHILE:
            assert time.monotonic() < deadline, f"stands still at {len(records)} records"
            time.sleep(0.01)

    def move() -> None:
        try:
            for lead in (
                lambda: cluster.lead_by(FIRST),
                lambda: cluster.lead_by(SECOND),
                lambda: (cluster.second.halt(), cluster.wait_for_leader(FIRST)),
                lambda: (cluster.second.start(), cluster.lead_by(SECOND)),
            ):
                read_on()
                lead()
            read_on()
        except BaseException as error:  # told by the test
            failed.append(error)
        finally:
            load.stop()

    kafka = {"bootstrap_servers": cluster.servers, "topic": topic, "group": topic, "session_timeout": "6s"}
    settings = KafkaSettings.model_validate({"client": client, **kafka})
    load = Load(cluster.servers, topic)
    mover = threading.Thread(target=move)
    with open_topic(settings) as source:
        mover.start()
        n_told = 0
        deadline = time.monotonic() + 3 * PATIENCE_SECONDS
        while mover.is_alive() or len(records) < load.n_written:
            records += source.poll(100)
            if len(records) - n_told >= A_WHILE:
                source.commit(source.position())
                n_told = len(records)
            assert time.monotonic() < deadline, f"{len(records)} of {load.n_written}, at {source.position()}"
            if failed:
                break
        mover.join()
        if failed:
            raise failed[0]
        assert source.poll(500) == []
        assert source.condition().skipped == {}
    for partition in (0, 1):
        found = [record for record in records if record.partition == partition]
        assert [int(record.value) for record in found] == list(range(partition, load.n_written, 2))
        assert [record.offset for record in found] == list(range(len(found)))
