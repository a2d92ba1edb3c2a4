import os

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from contracts.records import Record
from contracts.settings import KafkaSettings
from streamer.broker import BrokerError, EmbeddedBroker, create_topics
from streamer.deadletter import DeadLetterError, KafkaDeadLetters, MemoryDeadLetters


def _settings(broker: str, topic: str) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=broker, topic=topic)


def _stored(broker: str, topic: str) -> list[tuple[bytes | None, bytes, dict[str, bytes]]]:
    consumer = KafkaConsumer(bootstrap_servers=broker, fetch_max_wait_ms=50, max_partition_fetch_bytes=32 << 20)
    place = TopicPartition(topic, 0)
    consumer.assign([place])
    consumer.seek(place, 0)
    found = []
    for _ in range(100):
        for batch in consumer.poll(200).values():
            found += [(record.key, record.value, dict(record.headers)) for record in batch]
        if consumer.highwater(place) == consumer.position(place):
            break
    consumer.close()
    return found


def test_a_bad_record_arrives_with_its_bytes_its_place_and_the_reason(broker: str, topic: str) -> None:
    with KafkaDeadLetters(_settings(broker, topic)) as sink:
        sink.send(Record(topic, 3, 41, b"\x00key", b"\xff not json"), "not_json", "JSON is malformed: é")
        sink.send(Record(topic, 0, 7, None, b""), "missing_field", "$.user_id")
        sink.flush(10)
    assert _stored(broker, f"{topic}.dead-letters") == [
        (
            b"\x00key",
            b"\xff not json",
            {
                "anabranch-reason": b"not_json",
                "anabranch-detail": "JSON is malformed: é".encode(),
                "anabranch-topic": topic.encode(),
                "anabranch-partition": b"3",
                "anabranch-offset": b"41",
            },
        ),
        (
            None,
            b"",
            {
                "anabranch-reason": b"missing_field",
                "anabranch-detail": b"$.user_id",
                "anabranch-topic": topic.encode(),
                "anabranch-partition": b"0",
                "anabranch-offset": b"7",
            },
        ),
    ]


def test_an_existing_dead_letter_topic_is_used(broker: str, topic: str) -> None:
    create_topics(broker, {f"{topic}-bad": 1})
    settings = KafkaSettings(bootstrap_servers=broker, topic=topic, dead_letter_topic=f"{topic}-bad")
    with KafkaDeadLetters(settings) as sink:
        sink.send(Record(topic, 0, 0, None, b"x"), "not_json", "")
        sink.flush(10)
    assert [value for _, value, _ in _stored(broker, f"{topic}-bad")] == [b"x"]


def test_more_bad_records_than_may_be_pending_all_arrive(
    broker: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.deadletter.MAX_PENDING", 50)
    with KafkaDeadLetters(_settings(broker, topic)) as sink:
        for offset in range(500):
            sink.send(Record(topic, 0, offset, None, b"%d" % offset), "not_json", "")
        sink.flush(10)
    assert [int(value) for _, value, _ in _stored(broker, f"{topic}.dead-letters")] == list(range(500))


@pytest.mark.kafka
@pytest.mark.parametrize("n_bytes", [3_000_000, 80_000_000])
def test_a_record_too_large_for_the_topic_is_stored_cut_with_its_place(
    apache_kafka: str, topic: str, n_bytes: int
) -> None:
    # The broker takes 1 MB; the larger one does not even leave the producer.
    value = os.urandom(1_000_000) * (n_bytes // 1_000_000)
    with KafkaDeadLetters(_settings(apache_kafka, topic)) as sink:
        sink.send(Record(topic, 0, 0, None, b"small"), "not_json", "")
        sink.send(Record(topic, 0, 1, b"k", value), "too_large", "1 MB at most")
        sink.flush(30)
        sink.flush(30)
    small, cut = _stored(apache_kafka, f"{topic}.dead-letters")
    assert small[1] == b"small"
    assert cut[:2] == (b"k", value[:100_000])
    assert cut[2]["anabranch-original-bytes"] == b"%d" % n_bytes
    assert cut[2]["anabranch-offset"] == b"1"


@pytest.mark.kafka
def test_flush_raises_while_a_bad_record_is_refused(apache_kafka: str, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=apache_kafka)
    admin.create_topics({f"{topic}.dead-letters": {"num_partitions": 1, "configs": {"max.message.bytes": "300"}}})
    admin.wait_for_topics([f"{topic}.dead-letters"])
    admin.close()
    with KafkaDeadLetters(_settings(apache_kafka, topic)) as sink:
        sink.send(Record(topic, 0, 8, None, b"x"), "not_json", "")
        sink.flush(10)
        sink.send(Record(topic, 0, 9, None, os.urandom(1000)), "not_json", "")
        for _ in range(2):
            with pytest.raises(DeadLetterError, match=rf"1 bad records are not stored .* first {topic}\[0\] offset 9"):
                sink.flush(10)
    assert len(_stored(apache_kafka, f"{topic}.dead-letters")) == 1


def test_flush_raises_when_the_broker_is_gone(topic: str) -> None:
    with EmbeddedBroker() as broker:
        sink = KafkaDeadLetters(_settings(broker.bootstrap_servers, topic))
        sink.send(Record(topic, 0, 0, None, b"x"), "not_json", "")
        sink.flush(10)
    sink.send(Record(topic, 0, 1, None, b"y"), "not_json", "")
    with pytest.raises(DeadLetterError, match=r"1 bad records are not stored in .* after 0\.3 s"):
        sink.flush(0.3)
    sink.close()


def test_an_absent_broker_is_named() -> None:
    with pytest.raises(BrokerError, match="No Kafka broker answers"):
        KafkaDeadLetters(_settings("127.0.0.1:1", "events"), connect_timeout_ms=200)


def test_memory_keeps_the_last_ones() -> None:
    sink = MemoryDeadLetters(max_letters=2)
    for offset in range(3):
        sink.send(Record("events", 0, offset, None, b"x"), "not_json", "why")
    sink.flush(0)
    sink.close()
    assert [(letter.record.offset, letter.reason, letter.detail) for letter in sink.letters] == [
        (1, "not_json", "why"),
        (2, "not_json", "why"),
    ]
