"""Dead letters into the events' topic again, once what made them bad is repaired."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from contracts.settings import KafkaSettings
from streamer.connection import BrokerError, connect
from streamer.publish import EventPublisher
from streamer.security import kafka_python_options
from streamer.sources._standing import CONNECT_MS

_POLL_MS = 500
_ORIGIN = ("anabranch-partition", "anabranch-offset")
_ByReason = dict[str, int]


@dataclass
class Resent:
    """Dead letters by reason, and the first detail of each."""

    sent: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    """Stored with their first bytes only: what is left of them is not sent."""
    details: dict[str, str] = field(default_factory=dict)


def resend(settings: KafkaSettings, reasons: Collection[str] = (), *, dry_run: bool = False) -> Resent:
    """Send dead letters to the topic they came from, bytes and key as they were, each once. In this order:

    1. the end of the dead-letter topic is asked: what turns out bad again, behind it, is of the next time;
    2. everything from where the last time ended, by reason, up to there is read and sent;
    3. once all of it is stored, the place is kept, as the offset of the group ``….dead-letters``: who is killed before
       sends again, and the learner knows the ids of events.

    Dead letters of other topics are left alone. A record that a learner stored twice, as it may after a crash, is sent
    once.

    :param reasons: only these; none: all.
    :param dry_run: send nothing, keep no place.
    :raises BrokerError: no broker, or no dead-letter topic.
    :raises PublishError: the topic did not take one; no place is kept.
    """
    consumer = connect(
        lambda wait_ms: KafkaConsumer(
            bootstrap_servers=settings.bootstrap_servers,
            bootstrap_timeout_ms=wait_ms,
            client_id="anabranch-resend",
            group_id=f"{settings.group}.dead-letters",
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # where retention deleted what the kept place was before
            allow_auto_create_topics=False,
            **kafka_python_options(settings),
        ),
        settings,
        CONNECT_MS,
    )
    try:
        partitions = consumer.partitions_for_topic(settings.dead_letters)
        if not partitions:
            raise BrokerError(f"Topic `{settings.dead_letters}` does not exist: there are no dead letters yet.")
        places = [TopicPartition(settings.dead_letters, partition) for partition in sorted(partitions)]
        with EventPublisher(settings, settings.topic) as publisher:
            return _resend(consumer, places, settings.topic, reasons, None if dry_run else publisher)
    except KafkaError as error:
        raise BrokerError(f"Dead letters cannot be read from `{settings.dead_letters}`: {error}") from error
    finally:
        consumer.close()


def _resend(
    consumer: Any, places: list[TopicPartition], topic: str, reasons: Collection[str], publisher: EventPublisher | None
) -> Resent:
    consumer.assign(places)
    ends = consumer.end_offsets(places)
    done: dict[TopicPartition, int] = {}
    done_by: dict[TopicPartition, _ByReason] = {}
    for place, begin in consumer.beginning_offsets(places).items():
        kept = consumer.committed(place, metadata=True)
        if kept is None or kept.offset > ends[place]:  # a topic that was made anew
            kept = OffsetAndMetadata(begin, "", -1)
        done[place] = kept.offset
        done_by[place] = msgspec.json.decode(kept.metadata, type=_ByReason) if kept.metadata else {}
        consumer.seek(place, kept.offset)
    found = Resent()
    origins: set[tuple[bytes, ...]] = set()
    while any(consumer.position(place) < ends[place] for place in places):
        for place, letters in consumer.poll(_POLL_MS).items():
            for letter in letters:
                headers = {name: value or b"" for name, value in letter.headers}
                if letter.offset >= ends[place] or headers.get("anabranch-topic") != topic.encode():
                    continue
                reason, origin = headers["anabranch-reason"].decode(), tuple(headers[name] for name in _ORIGIN)
                if letter.offset < done_by[place].get(reason, 0) or (reasons and reason not in reasons):
                    continue
                if origin in origins:
                    continue
                origins.add(origin)
                found.details.setdefault(reason, headers["anabranch-detail"].decode(errors="replace"))
                if "anabranch-original-bytes" in headers:
                    found.cut[reason] += 1
                    continue
                found.sent[reason] += 1
                if publisher is not None:
                    publisher.publish_bytes(letter.value or b"", letter.key)
    if publisher is not None:
        publisher.flush()
        consumer.commit({place: _place(done[place], done_by[place], ends[place], reasons) for place in places})
    return found


def _place(done: int, done_by: _ByReason, end: int, reasons: Collection[str]) -> OffsetAndMetadata:
    """All is done up to the offset, and of some reasons more, up to what the metadata says."""
    if not reasons:
        return OffsetAndMetadata(end, "", -1)
    further = msgspec.json.encode({**done_by, **dict.fromkeys(reasons, end)}).decode()
    return OffsetAndMetadata(done, further, -1)
