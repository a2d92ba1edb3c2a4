"""Whatever bytes come, the stream goes on: the bad ones lie in the dead-letter topic, the good ones are learned."""

import json
from collections import Counter
from uuid import uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from prometheus_client import CollectorRegistry

from cli._assembly import assemble
from cli._inputs import wall_clock_ms
from contracts.settings import load_settings
from streamer.broker import create_topics
from streamer.deadletter import KafkaDeadLetters
from streamer.decode import EventDecoder
from streamer.sources.kafka import KafkaSource

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def produce_values(servers, topic, values):
    """Plain bytes into the topic, one record each; the key is the record's place."""
    create_topics(servers, {topic: 1})
    producer = KafkaProducer(bootstrap_servers=servers, enable_idempotence=False)
    for place, value in enumerate(values):
        producer.send(topic, key=b"%d" % place, value=value)
    producer.flush()
    producer.close()


def dead_letters(servers, topic):
    """By original offset: key, value, reason; and how often each came."""
    place = TopicPartition(f"{topic}.dead-letters", 0)
    consumer = KafkaConsumer(bootstrap_servers=servers)
    consumer.assign([place])
    consumer.seek(place, 0)
    found, times = {}, Counter()
    for _ in range(100):
        for record in [record for batch in consumer.poll(200).values() for record in batch]:
            headers = {name: value.decode() for name, value in record.headers}
            assert (headers["anabranch-topic"], headers["anabranch-partition"]) == (topic, "0")
            assert headers["anabranch-detail"]
            offset = int(headers["anabranch-offset"])
            found[offset] = (record.key, record.value or b"", headers["anabranch-reason"])
            times[offset] += 1
        if consumer.highwater(place) == consumer.position(place):
            break
    consumer.close()
    return found, times


def broken(event, **changes):
    """A good event with fields changed, or taken out where the change is None."""
    fields = {**msgspec.to_builtins(event), **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def test_every_kind_of_bad_record_is_kept_and_counted_while_the_stream_goes_on(
    embedded_broker, topic, flow, make, produce, stream_of
):
    broker = embedded_broker
    events = make(900)
    event, far_ms = events[0], wall_clock_ms() * 1000
    bad = {
        b"no json at all": "not_json",
        b"\xff\x00\xfe": "not_json",
        b'{"event_id": "cut': "not_json",
        broken(event, item_id=[1]): "wrong_type",
        broken(event, ts_ms="yesterday"): "wrong_type",
        broken(event, user_id=None): "missing_field",
        broken(event, ts_ms=None): "missing_field",
        broken(event, ts_ms=far_ms): "future",
        broken(event, event_id="x" * 5_000): "too_long",
        broken(event).replace(b"{", b'{"value": 1e999, ', 1): "non_finite",
        broken(event, type="wishlist"): "unknown_type",
        broken(event, context={"note": "x" * 30_000}): "too_large",
        b"": "not_json",
    }
    good = [msgspec.json.encode(event) for event in events]
    # The bad ones in the middle of the good ones, a tombstone among them.
    values = good[:300] + [value or None for value in bad] + good[300:600]
    stream = stream_of(broker, topic, events)
    produce_values(broker, topic, values)
    flow.configure(stream)
    with flow.learn() as run:
        run.until(lambda: run.consumed() >= 600)
        produce_values(broker, topic, good[600:])
        run.until(lambda: run.consumed() >= 900)
        metrics = run.metrics()
        run.process.terminate()
        assert run.wait() == 0, run.output

    count = Counter(bad.values())
    for name in ("anabranch_events_rejected_total", "anabranch_dlq_messages_total"):
        assert {reason: metrics[f"{name} {reason}"] for reason in count} == count
    found, times = dead_letters(broker, topic)
    expected = {300 + n: (b"%d" % (300 + n), value, reason) for n, (value, reason) in enumerate(bad.items())}
    assert found == expected
    assert set(times.values()) == {1}
    snapshot = flow.newest()
    assert snapshot.manifest.n_events == len(good)
    assert snapshot.manifest.offsets == {topic: {"0": len(good) + len(bad)}}
    assert snapshot.states["ingest"]["n_rejected"] == len(bad)


anything = st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())


def test_arbitrary_bytes_never_stop_a_learner(embedded_broker, flow, make, stream_of):
    good = [msgspec.json.encode(event) for event in make(200)]

    @given(st.lists(anything, max_size=40), st.integers(0, len(good)))
    @profile(deadline=None, max_examples=6, suppress_health_check=list(HealthCheck), database=None)
    def learns_the_good_and_keeps_the_rest(bad, place):
        topic = f"test-{uuid4().hex[:12]}"
        values = good[:place] + bad + good[place:]
        produce_values(embedded_broker, topic, values)
        settings = load_settings(flow.configure(stream_of(embedded_broker, topic, [])))
        with (
            KafkaDeadLetters(settings.kafka) as letters,
            KafkaSource(settings.kafka, until_end=True) as source,
        ):
            decoder = EventDecoder(settings, None, wall_clock_ms)
            assembly = assemble(settings, source, decoder, letters, CollectorRegistry())
            assembly.run()
        assert assembly.feed.standing.n_events == len(good)
        assert assembly.feed.standing.offsets == {(topic, 0): len(values)}
        assert assembly.feed.standing.n_rejected == len(bad)
        found, _ = dead_letters(embedded_broker, topic)
        assert {offset: value for offset, (_, value, _) in found.items()} == dict(enumerate(bad, place))

    learns_the_good_and_keeps_the_rest()
