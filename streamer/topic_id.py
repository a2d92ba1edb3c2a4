"""Whether a topic is still the one that offsets were read from: one that was deleted and made anew has another id."""

import logging
from collections.abc import Callable, Mapping

from kafka.errors import KafkaError

from contracts.settings import KafkaSettings
from streamer.admin import connect_admin
from streamer.connection import never
from streamer.sources._standing import CONNECT_MS, OffsetsLostError

logger = logging.getLogger(__name__)

_ANSWER_MS = 5_000


def topic_ids(settings: KafkaSettings, stop: Callable[[], bool] = never) -> dict[str, str]:
    """Kafka's own id of the topic, by its name; empty where there is no such topic, or the broker does not tell.

    :raises BrokerError: no broker.
    :raises StopAskedError: ``stop`` said so while it waited.
    """
    admin = connect_admin(settings, CONNECT_MS, stop, _ANSWER_MS)
    try:
        (topic,) = admin.describe_topics([settings.topic])
    except (KafkaError, ValueError) as error:
        logger.debug("topic `%s` cannot be asked for its id: %s", settings.topic, error)
        return {}
    finally:
        admin.close()
    found = topic.get("topic_id")
    return {settings.topic: str(found)} if found else {}


def check_topic_ids(made_from: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Offsets go on only in the topic that they were read from; an id that either side does not know passes.

    :raises OffsetsLostError: names both ids.
    """
    for topic, made in made_from.items():
        if (there := found.get(topic, made)) != made:
            raise OffsetsLostError(
                f"Topic `{topic}` is not the one that the snapshot was made from: its id was {made}, the broker has "
                f"{there}. It was deleted and made anew, or this is another cluster: the snapshot's offsets mean "
                "nothing there. Start in a new snapshot folder; or, where it is a copy that kept the offsets, go on "
                "once with `learn --allow-other-topic`."
            )
