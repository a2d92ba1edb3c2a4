"""End to end: a topic of Apache Kafka into weights, from the first batch to the last.

python -m benchmarks.bench_pipeline [--events 5000000] [--runs 5]
"""

from functools import partial

from benchmarks.figures import RUNS, Figure, arguments, in_turn, say, show
from benchmarks.kafka import apache_kafka
from benchmarks.pipeline import learn
from benchmarks.workloads import shop_events, shop_toml
from streamer.broker import create_topics
from streamer.publish import EventPublisher

_EVENTS = 1_000_000
_PARTITIONS = 4
_TOPIC = "events"


def _title(n_events: int) -> str:
    return f"End to end: {n_events:,} events of a busy shop (2,000 a second), start-up not counted"


TITLE = _title(_EVENTS)


def figures(n_events: int = _EVENTS, runs: int = RUNS) -> list[Figure]:
    """Topic → weights by `anabranch learn`."""
    apache = apache_kafka()
    name = "Apache Kafka → weights, `anabranch learn`"
    if missing := apache.why_not():
        return [Figure(name, [], "events/s", note=f"Apache Kafka did not run: {missing}.")]
    broker = apache.ApacheKafka().start()
    try:
        servers = broker.bootstrap_servers
        create_topics(servers, {_TOPIC: _PARTITIONS})
        say("  publishing events")
        with EventPublisher(servers, _TOPIC) as publisher:
            for event in shop_events(n_events):
                publisher.publish(event)
        found = in_turn({name: partial(learn, shop_toml(), servers, _TOPIC)}, runs)
    finally:
        broker.stop()
    return [Figure(name, [run.events_per_second for run in results], "events/s") for name, results in found.items()]


if __name__ == "__main__":
    options = arguments(_title(_EVENTS), _EVENTS)
    show({_title(options.events): figures(options.events, options.runs)})
