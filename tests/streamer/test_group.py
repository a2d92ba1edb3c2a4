"""Who takes over does not wait for a member that is dead; one that is alive after all loses nothing."""

import pytest
from kafka import KafkaConsumer, KafkaProducer

from contracts.settings import load_settings
from streamer.broker import create_topics
from streamer.group import dismiss_left_behind
from streamer.sources.topic import open_topic

N_RECORDS = 40


def settings_of(servers, topic, client, **more):
    kafka = {"bootstrap_servers": servers, "topic": topic, "group": topic, "client": client, **more}
    return load_settings(None, {"kafka": kafka}).kafka


def produce(servers, topic):
    create_topics(servers, {topic: 1})
    producer = KafkaProducer(bootstrap_servers=servers, enable_idempotence=False)
    for number in range(N_RECORDS):
        producer.send(topic, b"%d" % number)
    producer.flush()
    producer.close()


def read(source, n_records):
    found = []
    while len(found) < n_records:
        found += [record.offset for record in source.poll(200)]
    return found


@pytest.mark.kafka
@pytest.mark.timeout(120)
@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_a_member_that_is_silent_is_taken_out_at_once_and_one_that_is_alive_goes_on_where_it_stood(
    apache_kafka, topic, client
):
    """Its session lasts five minutes: nobody could wait for that."""
    settings = settings_of(apache_kafka, topic, client, session_timeout="5m")
    produce(apache_kafka, topic)
    with open_topic(settings) as alive:
        found = read(alive, N_RECORDS)
        assert dismiss_left_behind(settings) == 1
        with open_topic(settings) as successor:  # gets the partition while the one before does not poll
            assert read(successor, N_RECORDS) == list(range(N_RECORDS))
        produce(apache_kafka, topic)
        found += read(alive, N_RECORDS)
    assert found == list(range(2 * N_RECORDS))
    assert dismiss_left_behind(settings) == 0


@pytest.mark.kafka
def test_members_with_a_name_and_those_of_others_stay(apache_kafka, topic):
    settings = settings_of(apache_kafka, topic, "kafka-python", instance="learner", session_timeout="1s")
    produce(apache_kafka, topic)
    other = KafkaConsumer(topic, bootstrap_servers=apache_kafka, group_id=f"{topic}-other", client_id="aaa")
    with open_topic(settings) as named:
        read(named, N_RECORDS)
        assert dismiss_left_behind(settings) == 0
    while not other.assignment():
        other.poll(50)
    assert dismiss_left_behind(settings.model_copy(update={"group": f"{topic}-other"})) == 0
    other.close()


def test_a_broker_that_does_not_tell_its_members_changes_nothing(embedded_broker, topic):
    assert dismiss_left_behind(settings_of(embedded_broker, topic, "auto")) == 0
