"""Killed by SIGKILL and started again, a run ends where an uninterrupted one ends."""

import json
import random
from collections import Counter

import pytest
from kafka import KafkaConsumer, TopicPartition

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def versions(flow):
    return {int(path.name[1:9]) for path in flow.snapshots.glob("v????????")}


@pytest.mark.matrix  # kills of forks, and on Apache Kafka of a real process, are run always: crash matrix, standby
def test_a_run_killed_again_and_again_ends_in_the_same_state_bit_for_bit(straight, flow, same_state):
    """One partition, one thread; what is in a poll and when a snapshot is made differ from the straight run, too.

    Without --until-end a killed run always dies short of its last snapshot.
    """
    flow.configure(straight.stream)
    n_events = len(straight.stream.events)
    moment = random.Random(1)

    with flow.learn() as run:
        run.until(lambda: 1 in versions(flow))
        run.kill()
    after_first = max(versions(flow))

    # Snapshots by the wall clock, at any record: while one is being written, or just afterwards.
    flow.configure(straight.stream, every="50ms")
    with flow.learn() as run:
        writing = f"v{after_first + 1:08d}.*.tmp"
        run.until(lambda: list(flow.snapshots.glob(writing)) or max(versions(flow)) > after_first)
        run.kill()

    flow.configure(straight.stream)
    with flow.learn() as run:
        run.said("Learning `")
        left = n_events - flow.newest().manifest.n_events
        wanted = moment.randint(1, left)
        run.until(lambda: run.consumed() >= wanted)
        run.kill()

    flow.learn_to_the_end()
    same_state(flow.newest(), straight.flow.newest())


def ends_of(servers, topic):
    """Where each partition ends, as the broker tells it."""
    consumer = KafkaConsumer(bootstrap_servers=servers)
    try:
        places = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)]
        return {str(place.partition): end for place, end in consumer.end_offsets(places).items()}
    finally:
        consumer.close()


@pytest.mark.kafka
def test_over_four_partitions_no_event_is_learned_twice_or_missed(apache_kafka, topic, flow, make, produce, stream_of):
    events = make(3_000, seed=4)
    stream = stream_of(apache_kafka, topic, events)
    produce(stream, events, n_partitions=4)
    # Views are only shown, not predicted: what is learned of them would depend on the order between partitions.
    flow.configure(stream, tasks='[{ name = "click", window = "10s" }, { name = "purchase", window = "20s" }]')
    with flow.learn() as run:
        run.until(lambda: 2 in versions(flow))
        run.kill()
    assert sum(flow.newest().manifest.offsets[topic].values()) < len(events), "killed short of the end"
    report = json.loads(flow.learn_to_the_end("--json", "-").splitlines()[-1])

    count = Counter(event.type for event in events)
    snapshot = flow.newest()
    assert snapshot.manifest.n_events == report["events"] == len(events)
    assert snapshot.manifest.offsets == {topic: ends_of(apache_kafka, topic)}
    assert len(snapshot.manifest.offsets[topic]) == 4
    assert all(snapshot.manifest.offsets[topic].values()), "every partition should have events"
    assert sum(snapshot.manifest.offsets[topic].values()) == len(events)
    for task in ("click", "purchase"):
        assert report["tasks"][task]["examples"] == count["content_view"]
        assert report["tasks"][task]["positives"] == count[task] > 0
    # Each exposure is learned at once as a negative, and each outcome as one positive more.
    learned = snapshot.states["learner"]
    assert learned["n_positives"] == [count["click"], count["purchase"]]
    assert learned["n_learned"] == [count["content_view"] + count[task] for task in ("click", "purchase")]
