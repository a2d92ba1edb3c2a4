"""What polling a Kafka topic costs by each client: CPU time of all threads of this process, and records a second.

Apache Kafka where `make kafka` fetched it, else the embedded broker. The clients take turns.

python -m benchmarks.bench_poll
"""

import gc
import time
from typing import Any

from benchmarks.figures import RUNS, Figure, say, show
from benchmarks.kafka import apache_kafka
from benchmarks.workloads import shop_events
from contracts.records import Record
from contracts.settings import KafkaSettings
from streamer.broker import EmbeddedBroker, create_topics
from streamer.publish import EventPublisher
from streamer.sources.topic import open_topic

_EVENTS = 300_000
_PARTITIONS = 4
_CLIENTS = ("kafka-python", "confluent")
TITLE = f"Poll: {_EVENTS:,} records of a topic with {_PARTITIONS} partitions"


def figures() -> list[Figure]:
    """CPU time and rate of each client."""
    broker = _broker()
    try:
        servers = broker.start().bootstrap_servers
        create_topics(servers, {"events": _PARTITIONS})
        with EventPublisher(servers, "events") as publisher:
            for event in shop_events(_EVENTS):
                publisher.publish(event)
        cpu: dict[str, list[float]] = {client: [] for client in _CLIENTS}
        rate: dict[str, list[float]] = {client: [] for client in _CLIENTS}
        # What is there stays: the collector need not look at it, as in the service.
        gc.collect()
        gc.freeze()
        for run in range(RUNS + 1):
            say(f"  run {run} of {RUNS}" if run else "  warm-up")
            for client in _CLIENTS:
                cpu_us, records_per_s = _poll_all(servers, client)
                if run:  # the first one warms caches
                    cpu[client].append(cpu_us)
                    rate[client].append(records_per_s)
    finally:
        gc.unfreeze()
        broker.stop()
    made = []
    for client in _CLIENTS:
        made += [
            Figure(f"{client}, CPU", cpu[client], "µs/record", digits=2),
            Figure(f"{client}, wall clock, {type(broker).__name__}", rate[client], "records/s"),
        ]
    return made


def _poll_all(servers: str, client: str) -> tuple[float, float]:
    """CPU microseconds a record, and records a second; timed from the first records on."""
    settings = KafkaSettings.model_validate(
        {"bootstrap_servers": servers, "topic": "events", "group": client, "client": client, "session_timeout": "10s"}
    )
    with open_topic(settings) as source:
        first: list[Record] = []
        while not first:
            first = source.poll(100)
        started, cpu_started, n_timed = time.perf_counter(), time.process_time(), 0
        while n_timed < _EVENTS - len(first):
            n_timed += len(source.poll(100))
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return cpu_seconds / n_timed * 1e6, n_timed / seconds


def _broker() -> Any:
    apache = apache_kafka()
    return EmbeddedBroker() if apache.why_not() else apache.ApacheKafka()


if __name__ == "__main__":
    show({TITLE: figures()})
