"""Members that a killed learner left behind in its consumer group (ADR 24)."""

import logging
from collections.abc import Callable

from kafka.admin import MemberToRemove
from kafka.errors import KafkaError

from contracts.settings import KafkaSettings
from streamer.admin import connect_admin
from streamer.connection import never
from streamer.sources._standing import CLIENT_ID, CONNECT_MS

logger = logging.getLogger(__name__)

_ANSWER_MS = 5_000


def dismiss_left_behind(settings: KafkaSettings, stop: Callable[[], bool] = never) -> int:
    """Take the members of earlier learners out of the group, whose partitions Kafka would hold back until
    `kafka.session_timeout`; returns how many there were.

    For the holder of the writer's lock: whoever read for these snapshots before is dead. A member that is alive after
    all joins again at once and goes on where it stood. Members with a name (`kafka.instance`) are left to their
    successor. A broker that cannot be asked (the embedded one), or does not allow it, changes nothing: the group waits.

    :raises BrokerError: no broker.
    :raises StopAskedError: ``stop`` said so while it waited.
    """
    admin = connect_admin(settings, CONNECT_MS, stop, _ANSWER_MS)
    try:
        members = admin.describe_groups([settings.group])[settings.group]["members"]
        left_behind = [
            MemberToRemove(member["member_id"])
            for member in members
            if member["client_id"] == CLIENT_ID and not member["group_instance_id"]
        ]
        if left_behind:
            admin.remove_group_members(settings.group, left_behind)
            logger.warning("Took %d member(s) left behind out of group `%s`.", len(left_behind), settings.group)
    except (KafkaError, ValueError) as error:  # ValueError: Tansu's answer cannot be read
        logger.debug("group `%s` cannot be asked for its members: %s", settings.group, error)
        return 0
    finally:
        admin.close()
    return len(left_behind)
