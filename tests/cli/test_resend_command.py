"""`anabranch resend`: dead letters into their topic again, each once.

On Apache Kafka: the embedded broker tells an end that is too low, and forgets what a commit says beside the offset.
"""

import re
import time

import pytest
import typer
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from typer.testing import CliRunner

from cli.resend import command
from contracts.records import Record
from contracts.settings import KafkaSettings
from streamer.broker import create_topics
from streamer.deadletter import KafkaDeadLetters
from streamer.publish import EventPublisher, PublishError

app = typer.Typer()
app.command()(command)


def resend(servers, topic, *options):
    """The exit code, and rows of the table: reason, sent, cut."""
    arguments = ["--kafka", servers, "--topic", topic, *options]
    done = CliRunner(env={"COLUMNS": "200", "ANABRANCH__KAFKA__GROUP": topic}).invoke(app, arguments)
    rows = re.findall(r"│ (\w+) +│ +(\d+) │ +(\d+) │", done.output)
    return done, {reason: (int(sent), int(cut)) for reason, sent, cut in rows}


def stored(servers, topic):
    """Key, value and headers of all records, in order of their partitions."""
    consumer = KafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest", consumer_timeout_ms=2_000)
    consumer.subscribe([topic])
    found = [(record.key, record.value, record.headers) for record in consumer]
    consumer.close()
    return found


@pytest.fixture
def letters(apache_kafka, topic):
    """Stores dead letters of a topic of two partitions: offset, reason, value and key of each."""
    create_topics(apache_kafka, {topic: 2})

    def store(*letters, of=topic):
        settings = KafkaSettings(bootstrap_servers=apache_kafka, topic=of, dead_letter_topic=f"{topic}.dead-letters")
        with KafkaDeadLetters(settings) as sink:
            for offset, reason, value, key in letters:
                sink.send(Record(of, 1, offset, key, value), reason, f"a detail [{reason}]")
            sink.flush(10)

    return store


@pytest.mark.kafka
def test_each_is_sent_once_with_its_bytes_and_key_and_what_came_later_the_next_time(apache_kafka, topic, letters):
    letters(
        (3, "mapping", b"\xff\x00", b"u1"),
        (4, "not_json", b"", None),
        (3, "mapping", b"\xff\x00", b"u1"),  # stored again by a learner that was killed
    )
    letters((5, "mapping", b"not ours", b"u2"), of=f"{topic}-other")
    counted, rows = resend(apache_kafka, topic, "--dry-run")
    assert (counted.exit_code, rows) == (0, {"mapping": (1, 0), "not_json": (1, 0)}), counted.output
    assert "a detail [mapping]" in counted.output
    assert stored(apache_kafka, topic) == []
    assert resend(apache_kafka, topic)[1] == rows
    first = [(b"u1", b"\xff\x00", []), (None, b"", [])]
    assert sorted(stored(apache_kafka, topic), key=str) == sorted(first, key=str)
    again, rows = resend(apache_kafka, topic)
    assert (again.exit_code, rows) == (0, {})
    assert f"No dead letters in {topic}.dead-letters." in again.output
    letters((9, "mapping", b"later", b"u1"))
    assert resend(apache_kafka, topic)[1] == {"mapping": (1, 0)}
    assert sorted(stored(apache_kafka, topic), key=str) == sorted([*first, (b"u1", b"later", [])], key=str)


@pytest.mark.kafka
def test_one_reason_is_sent_and_the_others_are_left_for_another_time(apache_kafka, topic, letters):
    letters((1, "mapping", b"a", b"u"), (2, "not_json", b"b", b"u"), (3, "future", b"c", b"u"))
    assert resend(apache_kafka, topic, "--reason", "mapping")[1] == {"mapping": (1, 0)}
    letters((4, "mapping", b"d", b"u"))
    both = ("--reason", "future", "--reason", "mapping")
    assert resend(apache_kafka, topic, *both)[1] == {"future": (1, 0), "mapping": (1, 0)}
    assert resend(apache_kafka, topic)[1] == {"not_json": (1, 0)}
    assert resend(apache_kafka, topic)[1] == {}
    assert [value for _, value, _ in stored(apache_kafka, topic)] == [b"a", b"c", b"d", b"b"]


@pytest.mark.kafka
def test_a_dead_letter_that_was_stored_cut_is_counted_and_not_sent(apache_kafka, topic, letters, monkeypatch):
    monkeypatch.setattr("streamer.deadletter.CUT_BYTES", 10)
    monkeypatch.setattr("streamer.deadletter.KafkaProducer", _refusing_long_ones)
    letters((1, "too_large", b"x" * 1_000, b"u"), (2, "too_large", b"y" * 10, b"u"))
    assert resend(apache_kafka, topic)[1] == {"too_large": (1, 1)}
    assert [value for _, value, _ in stored(apache_kafka, topic)] == [b"y" * 10]


def _refusing_long_ones(**options):
    return KafkaProducer(**{**options, "max_request_size": 400, "compression_type": None})


@pytest.mark.kafka
def test_what_retention_deleted_is_passed_and_a_topic_that_was_made_anew_is_read_from_its_beginning(
    apache_kafka, topic, letters
):
    letters(*((offset, "mapping", b"%d" % offset, b"u") for offset in range(3)))
    assert resend(apache_kafka, topic)[1] == {"mapping": (3, 0)}
    letters(*((offset, "mapping", b"%d" % offset, b"u") for offset in range(3, 6)))
    place, admin = TopicPartition(f"{topic}.dead-letters", 0), KafkaAdminClient(bootstrap_servers=apache_kafka)
    admin.delete_records({place: 5})
    assert resend(apache_kafka, topic)[1] == {"mapping": (1, 0)}
    admin.delete_topics([place.topic])
    while place.topic in admin.list_topics():
        time.sleep(0.05)
    admin.close()
    letters((6, "mapping", b"6", b"u"))
    assert resend(apache_kafka, topic)[1] == {"mapping": (1, 0)}
    assert [value for _, value, _ in stored(apache_kafka, topic)] == [b"0", b"1", b"2", b"5", b"6"]


@pytest.mark.kafka
def test_what_the_topic_does_not_take_is_sent_the_next_time(apache_kafka, topic, letters, monkeypatch):
    letters((1, "mapping", b"a", b"u"))
    with monkeypatch.context() as broken:
        broken.setattr(EventPublisher, "flush", _refused)
        done, _ = resend(apache_kafka, topic)
        assert (done.exit_code, done.output) == (1, "it is full\n")
    assert resend(apache_kafka, topic)[1] == {"mapping": (1, 0)}


def _refused(_):
    raise PublishError("it is full")


def test_without_a_dead_letter_topic_it_says_so(embedded_broker, topic):
    create_topics(embedded_broker, {topic: 1})
    done, _ = resend(embedded_broker, topic)
    assert done.exit_code == 1
    assert f"Topic `{topic}.dead-letters` does not exist" in done.output
