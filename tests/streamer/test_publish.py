from collections import defaultdict

import msgspec
import pytest
from kafka import KafkaAdminClient, KafkaProducer

from contracts.events import Event
from contracts.records import Record
from contracts.settings import KafkaSettings
from streamer.broker import BrokerError, create_topics
from streamer.publish import EventPublisher, PublishError
from streamer.sources.kafka import KafkaSource


def _event(n: int) -> Event:
    user: str | int = f"user-{n % 11}" if n % 2 else n % 11
    return Event(event_id=str(n), type="click", user_id=user, item_id=n, ts_ms=n, context={"page": "é"})


def _read(broker: str, topic: str) -> list[Record]:
    settings = KafkaSettings.model_validate(
        {"bootstrap_servers": broker, "topic": topic, "group": topic, "session_timeout": "1s"}
    )
    records: list[Record] = []
    with KafkaSource(settings) as source:
        while not source.caught_up():
            records += source.poll(100)
    return records


def test_events_arrive_whole_and_in_order_for_each_user(broker: str, topic: str) -> None:
    create_topics(broker, {topic: 3})
    events = [_event(n) for n in range(2000)]
    with EventPublisher(broker, topic) as publisher:
        for event in events:
            publisher.publish(event)
        assert publisher.n_sent == len(events)
    partitions: dict[str | int, set[int]] = defaultdict(set)
    found: dict[str | int, list[Event]] = defaultdict(list)
    for record in _read(broker, topic):
        event = msgspec.json.decode(record.value, type=Event)
        assert record.key == str(event.user_id).encode()
        partitions[event.user_id].add(record.partition)
        found[event.user_id].append(event)
    assert all(len(places) == 1 for places in partitions.values())
    assert len(set.union(*partitions.values())) > 1
    assert found == {user: [event for event in events if event.user_id == user] for user in found}
    assert sum(map(len, found.values())) == len(events)


def test_a_rate_spreads_events_evenly_and_catches_up_after_a_pause(embedded_broker: str, topic: str) -> None:
    create_topics(embedded_broker, {topic: 1})
    now = 100.0
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    with EventPublisher(embedded_broker, topic, rate_per_s=4, clock=lambda: now, sleep=sleep) as publisher:
        for n in range(4):
            publisher.publish(_event(n))
        assert slept == pytest.approx([0.25, 0.25, 0.25])
        now += 1.0  # the caller was slow: the events that are due come at once
        for n in range(4):
            publisher.publish(_event(n))
    assert slept == pytest.approx([0.25, 0.25, 0.25])


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_must_be_positive(rate: float) -> None:
    with pytest.raises(ValueError, match="rate_per_s must be positive; found"):
        EventPublisher("127.0.0.1:1", "events", rate_per_s=rate)


def test_what_is_on_its_way_is_bounded(embedded_broker: str, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.publish.MAX_IN_FLIGHT", 1000)
    create_topics(embedded_broker, {topic: 2})
    with EventPublisher(embedded_broker, topic) as publisher:
        for n in range(5000):
            publisher.publish(_event(n))
    assert len(_read(embedded_broker, topic)) == 5000


@pytest.mark.kafka  # the embedded broker creates a topic that is written to
def test_a_missing_topic_is_named(apache_kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.publish.TOPIC_WAIT_MS", 500)
    with pytest.raises(PublishError, match=f"Topic `{topic}` is not there at {apache_kafka}"):
        EventPublisher(apache_kafka, topic)


def test_a_user_is_put_where_other_producers_put_it(broker: str, topic: str) -> None:
    create_topics(broker, {topic: 5})
    with EventPublisher(broker, topic) as publisher:
        for n in range(40):
            publisher.publish(_event(n))
    producer = KafkaProducer(bootstrap_servers=broker, enable_idempotence=False)
    for record in _read(broker, topic):
        assert producer.send(topic, key=record.key, value=b"{}").get(10).partition == record.partition
    producer.close()


@pytest.mark.kafka
def test_flush_raises_when_an_event_was_refused(apache_kafka: str, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=apache_kafka)
    admin.create_topics({topic: {"num_partitions": 1, "configs": {"max.message.bytes": "400"}}})
    admin.wait_for_topics([topic])
    admin.close()
    publisher = EventPublisher(apache_kafka, topic)
    publisher.publish(_event(0))
    publisher.flush(10)
    publisher.publish(msgspec.structs.replace(_event(1), event_id="".join(chr(0x4E00 + n) for n in range(250))))
    for _ in range(2):
        with pytest.raises(PublishError, match=f"Topic `{topic}` did not take an event: .*MessageSizeTooLarge"):
            publisher.flush(10)
    publisher.close()
    publisher.close()


def test_an_absent_broker_is_named() -> None:
    with pytest.raises(BrokerError, match="No Kafka broker answers"):
        EventPublisher("127.0.0.1:1", "events", connect_timeout_ms=200)
