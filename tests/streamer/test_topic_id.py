"""A topic that was deleted and made anew is another one, whatever its name."""

import time

import pytest
from kafka import KafkaAdminClient

from contracts.settings import KafkaSettings
from streamer.broker import create_topics
from streamer.sources.kafka import OffsetsLostError
from streamer.topic_id import check_topic_ids, topic_ids


def test_the_id_stays_while_the_topic_does_and_changes_when_it_is_made_anew(broker, topic):
    settings = KafkaSettings(bootstrap_servers=broker, topic=topic)
    assert topic_ids(settings) == {}
    create_topics(broker, {topic: 2})
    first = topic_ids(settings)
    assert list(first) == [topic]
    assert topic_ids(settings) == first
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.delete_topics([topic])
    while topic in admin.list_topics():
        time.sleep(0.05)
    admin.close()
    create_topics(broker, {topic: 2})
    second = topic_ids(settings)
    with pytest.raises(OffsetsLostError, match=rf"`{topic}`.* id was {first[topic]}, the broker has {second[topic]}\."):
        check_topic_ids(first, second)


def test_an_id_that_nobody_told_passes():
    """Of a snapshot from before ids were kept, and of a broker that does not tell them."""
    check_topic_ids({}, {"events": "a"})
    check_topic_ids({"events": "a"}, {})
    check_topic_ids({"events": "a"}, {"events": "a"})
