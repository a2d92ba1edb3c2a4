"""Where the reader of a topic stands and where it starts: what the sources of both Kafka clients share."""

import logging
from collections.abc import Collection, Sequence
from typing import Literal

from contracts.records import Offsets, Partition
from contracts.settings import KafkaSettings
from streamer.connection import BrokerError

logger = logging.getLogger(__name__)

CLIENT_ID = "anabranch"
CONNECT_MS = 30_000
RESOLVE_MS = 10_000
ASK_MS = 1_000
METADATA_AGE_MS = 60_000  # how late a new partition may be noticed
FETCH_WAIT_MS = 50
FETCH_BYTES = 64 << 20
PARTITION_FETCH_BYTES = 8 << 20


class OffsetsLostError(ValueError):
    """The topic no longer has the offset to go on at (or does not have it yet); the message names both."""


class Standing:
    """The next offset of each partition, and where a partition starts that is assigned.

    :param first_partitions: what the topic had when the source was made.
    """

    def __init__(self, settings: KafkaSettings, first_partitions: frozenset[int]) -> None:
        self.next: Offsets = {}
        self.skipped: dict[Partition, int] = {}
        """Offsets passed over because they are gone, by partition."""
        self._topic = settings.topic
        self._group = settings.group
        self._start = settings.start
        self._missing_offsets = settings.missing_offsets
        self._first_partitions = first_partitions
        self._snapshot_given = False

    def seek(self, offsets: Offsets) -> None:
        """Stand at a snapshot's offsets.

        :raises ValueError: an offset of another topic, of a partition that is not there, or a negative one.
        """
        for (topic, partition), offset in offsets.items():
            if topic != self._topic or partition not in self._first_partitions or offset < 0:
                raise ValueError(
                    f"The snapshot's offset {offset} of `{topic}`[{partition}] does not fit topic "
                    f"`{self._topic}` with {len(self._first_partitions)} partitions. Read the topic that the snapshot "
                    "was made from, or start in a new snapshot folder."
                )
        self.next = dict(offsets)
        self._snapshot_given = True

    def start_of(self, partition: int) -> int | Literal["beginning", "end"]:
        """Where to start reading a partition, first that holds:

        1. where the source stands in it, if it read from it before (a rebalance gave it back), or as the snapshot says;
        2. its beginning, if there is a snapshot that does not name it, or if it was created after the source: nothing
           is lost;
        3. ``settings.start``.
        """
        offset = self.next.get((self._topic, partition))
        if offset is not None:
            return offset
        created_later = partition not in self._first_partitions
        if self._snapshot_given or created_later or self._start == "earliest":
            return "beginning"
        return "end"

    def tell(self, assigned: Collection[int]) -> None:
        """Log which partitions the group gave this member and where they start; as a warning, which it did not give."""
        told = [f"{show((self._topic, p))} from {_in_words(self.start_of(p))}" for p in sorted(assigned)]
        logger.info("assigned %s", ", ".join(told) or "no partition")
        if elsewhere := sorted(self._first_partitions.difference(assigned)):
            logger.warning(
                "Group `%s` gave %s to another member, and this model does not learn what it reads. "
                "Give each model a kafka.group of its own.",
                self._group,
                ", ".join(show((self._topic, p)) for p in elsewhere),
            )

    def miss(self, ranges: Sequence[tuple[int, int, int]], why: str) -> list[int]:
        """Deal with offsets that the broker does not have, as ``kafka.missing_offsets`` says.

        :param ranges: partition, first offset and end offset, as the broker has them; none where the partition was
            taken away meanwhile: who has it next finds out.
        :param why: told instead where every partition fits; empty: then nothing is wrong.
        :returns: the partitions that stand at their first record now.
        :raises OffsetsLostError: the settings say so, or a partition ends before the offset: skipping does not help.
        """
        lines, deleted = [], {}
        for partition, begin, end in ranges:
            place = self._topic, partition
            wanted = self.next.get(place)
            if wanted is None or begin <= wanted <= end:
                continue
            lines.append(f"{show(place)}: wants offset {wanted}, the broker has {begin} to {end}")
            if wanted < begin:
                deleted[partition] = begin
        if not ranges or not (lines or why):
            return []
        only_deleted = bool(deleted) and len(deleted) == len(lines)
        if not only_deleted or self._missing_offsets == "fail":
            way_out = ', or set kafka.missing_offsets = "skip" to do without what is gone' if only_deleted else ""
            raise OffsetsLostError(
                f"The topic does not have the offsets to go on at. {'; '.join(lines or [why])}. Records were deleted "
                "by retention, or the topic was made anew. Roll back to a snapshot that fits, start in a new snapshot "
                f"folder{way_out}."
            )
        logger.warning('Records are gone and not learned (kafka.missing_offsets = "skip"). %s.', "; ".join(lines))
        for partition, begin in deleted.items():
            place = self._topic, partition
            self.skipped[place] = self.skipped.get(place, 0) + begin - self.next[place]
            self.next[place] = begin
        return list(deleted)


def unknown_times(settings: KafkaSettings, why: str) -> BrokerError:
    """The error for a broker that does not tell where a time lies."""
    return BrokerError(
        f"{settings.bootstrap_servers} does not tell which offsets of `{settings.topic}` are of a time: {why}"
    )


def fenced(settings: KafkaSettings) -> BrokerError:
    """The error for a member whose name another process has taken."""
    return BrokerError(
        f"Another process reads `{settings.topic}` as kafka.instance = `{settings.instance}`, and Kafka gave it this "
        "one's place. Only the learner and its standby share a name: give any other learner one of its own."
    )


def heartbeat_interval_ms(settings: KafkaSettings) -> int:
    """Twelve chances to be heard; Tansu also lets members join only at heartbeats."""
    return max(50, min(3_000, settings.session_timeout_ms // 12))


def show(partition: Partition) -> str:
    """A partition in messages: ``events[3]``."""
    return f"{partition[0]}[{partition[1]}]"


def _in_words(start: int | Literal["beginning", "end"]) -> str:
    return f"{start}" if isinstance(start, int) else f"the {start}"
