"""A learner that is slower than its topic, or stands still: the ingest stops reading ahead, and loses nothing."""

import time
from contextlib import nullcontext

import pytest
from prometheus_client import CollectorRegistry

from contracts.batch import Batch
from contracts.settings import load_settings
from streamer.broker import create_topics
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.feed import Inputs
from streamer.prefetch import ThreadFeed
from streamer.publish import EventPublisher
from streamer.simulator import ShopSimulator, SimulatorSettings
from streamer.sources.topic import open_topic

N_EVENTS, N_ROWS, N_POLLED = 6_000, 64, 500
BATCHES_AHEAD = 8  # the queue, and one on either side of it


@pytest.mark.slow
@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_a_burst_waits_in_the_broker_while_the_learner_stands_still_and_is_read_whole_behind(
    embedded_broker, topic, client
):
    kafka = {
        "bootstrap_servers": embedded_broker,
        "topic": topic,
        "group": topic,
        "client": client,
        "session_timeout": "1s",  # Tansu lets members join at heartbeats only
        "max_poll_records": N_POLLED,
    }
    settings = load_settings(None, {"kafka": kafka, "batch": {"max_rows": N_ROWS, "min_rows": 1}})
    create_topics(embedded_broker, {topic: 1})
    with EventPublisher(embedded_broker, topic) as publisher:
        for event in ShopSimulator(SimulatorSettings(events=N_EVENTS)).events():
            publisher.publish(event)
    registry = CollectorRegistry()
    decoder = EventDecoder(settings, None, lambda: 1 << 42)
    with ThreadFeed() as feed, open_topic(settings.kafka, None, until_end=True) as source:
        feed.open(
            settings, lambda _: nullcontext(Inputs(source, decoder, MemoryDeadLetters())), registry, lambda: False
        )
        stream = feed.stream()
        n_learned = next(stream).n_events
        read = -1
        while read != (read := sum(source.position().values())):
            time.sleep(1.0)  # stands still: for a second it has read nothing more
        assert read <= BATCHES_AHEAD * N_ROWS + N_POLLED
        for piece in stream:
            n_learned += piece.n_events if isinstance(piece, Batch) else 0
            if registry.get_sample_value("anabranch_events_consumed_total", {"topic": topic, "event": "click"}):
                lag = {"topic": topic, "partition": "0"}
                told = registry.get_sample_value("anabranch_consumer_lag_messages", lag)
        stream.close()
    assert n_learned == N_EVENTS
    assert told == 0
