"""Records from a Kafka topic, as a member of a consumer group whose positions the snapshot decides."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.errors import (
    FencedInstanceIdError,
    KafkaConnectionError,
    KafkaError,
    LogTruncationError,
    OffsetOutOfRangeError,
)
from kafka.structs import OffsetAndMetadata

from contracts.records import Offsets, Partition, Record
from contracts.settings import KafkaSettings
from streamer.connection import LOG_EVERY_SECONDS, BrokerError, StopAskedError, connect, never
from streamer.security import kafka_python_options
from streamer.sources._base import Condition
from streamer.sources._standing import (
    ASK_MS,
    CLIENT_ID,
    CONNECT_MS,
    FETCH_BYTES,
    FETCH_WAIT_MS,
    METADATA_AGE_MS,
    PARTITION_FETCH_BYTES,
    RESOLVE_MS,
    OffsetsLostError,
    Standing,
    fenced,
    heartbeat_interval_ms,
    show,
    unknown_times,
)

__all__ = ["KafkaSource", "OffsetsLostError"]

logger = logging.getLogger(__name__)

CLOSE_MS = 5_000


class KafkaSource:
    """A stream without end, read by kafka-python; partitions come and go with the group.

    Where reading of a partition starts when it is assigned: :meth:`Standing.start_of`. The group's committed offsets
    are never read: they may be ahead of the snapshot, and what lies between would be lost. They are written
    (:meth:`commit`) so that lag tools see how far the learner is.

    Aborted transactions are not returned where the broker marks them (``read_committed``; Tansu does not). A record
    without a value (a tombstone) comes with an empty one, which the decoder rejects.

    One source belongs to one thread.

    :param resume: offsets of a snapshot; None: there is none. An empty one is a snapshot that read nothing.
    :param start_ms: without a snapshot, start each partition at its first record of this time or later, as the records'
        times in Kafka say; at its end, where there is none.
    :param until_end: end once everything that is there was read (:meth:`caught_up`), instead of waiting for more.
    :param connect_timeout_ms: how long to wait for a broker and for the topic.
    :param stop: gives up that wait.
    :raises BrokerError: no broker, or no such topic.
    :raises StopAskedError: ``stop`` said so.
    :raises ValueError: an offset of another topic or of a partition that the topic does not have.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        resume: Offsets | None = None,
        *,
        start_ms: int | None = None,
        until_end: bool = False,
        connect_timeout_ms: int = CONNECT_MS,
        stop: Callable[[], bool] = never,
    ) -> None:
        self._settings = settings
        self._until_end = until_end
        self._closed = False
        self._sought: dict[TopicPartition, int] = {}
        """Where a reader was put and has read nothing since: the place that may not exist."""
        self._unresolved: set[TopicPartition] = set()
        """Put to a beginning or an end whose number the broker has yet to tell."""
        self._joined = False
        self._commit_failed = False
        self._consumer: Any = connect(self._make_consumer, settings, connect_timeout_ms, stop)
        try:
            metrics = self._consumer.metrics(raw=True)
            self._n_connections = next(metrics[name] for name in metrics if name.name == "connection-count")
            partitions = self._wait_for_topic(connect_timeout_ms, stop)
            self._standing = Standing(settings, partitions)
            if resume is None and start_ms is not None:
                resume = self._offsets_at(start_ms, partitions)
            if resume is not None:
                self.seek(resume)
            self._consumer.subscribe([settings.topic], listener=_Listener(self))
        except BaseException:
            self.close()
            raise

    @property
    def ended(self) -> bool:
        """A stream has no end, unless ``until_end`` asks for one."""
        return self._until_end and self.caught_up()

    def poll(self, timeout_ms: int) -> list[Record]:
        """The next records; joins the group and takes part in its rebalances on the way.

        :raises OffsetsLostError: the offset to go on at is gone and not to be skipped, or the topic ends before it.
        :raises BrokerError: another process has taken this one's name in the group.
        """
        try:
            batches = self._consumer.poll(timeout_ms=timeout_ms)
        except (OffsetOutOfRangeError, LogTruncationError) as error:
            self._miss(str(error))
            batches = {}
        except FencedInstanceIdError as error:  # told by a commit: heartbeats keep it to themselves
            raise fenced(self._settings) from error
        polled: list[Record] = []
        for place, batch in batches.items():
            topic, partition = place
            polled += [Record(topic, partition, r.offset, r.key, r.value or b"", r.timestamp) for r in batch]
            self._standing.next[topic, partition] = batch[-1].offset + 1
            self._sought.pop(place, None)
            self._unresolved.discard(place)
        if self._unresolved:
            self._resolve()
        if not polled and self._sought:
            self._check_sought()
        return polled

    def position(self) -> Offsets:
        """The next offset of every partition that was read, or that the snapshot named.

        A partition that another member took over stays here as far as this source read it.
        """
        if unknown := self._unresolved and self._resolve():
            raise BrokerError(f"{self._settings.bootstrap_servers} does not tell where {show(unknown[0])} begins.")
        return dict(self._standing.next)

    def seek(self, offsets: Offsets) -> None:
        """Go on at a snapshot's offsets; a partition it does not name starts at its beginning.

        :raises ValueError: an offset of another topic, of a partition that is not there, or a negative one.
        """
        self._standing.seek(offsets)
        self._put(self._consumer.assignment())

    def commit(self, offsets: Offsets) -> None:
        """Tell the group where its members are, without waiting; a failure is only logged."""
        assigned = self._consumer.assignment()
        told = {
            TopicPartition(*partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in offsets.items()
            if TopicPartition(*partition) in assigned
        }
        if not told:
            return
        try:
            self._consumer.commit_async(told, callback=self._on_commit)
        except KafkaError as error:
            self._on_commit(told, error)

    def lag(self, *, ask: bool = False) -> dict[Partition, int]:
        """Records behind the end, by partition; one whose end no fetch has told yet is left out.

        Where the topic is transactional or compacted, offsets that carry no record count too.

        :param ask: the broker too; what it does not tell is as the last fetch told.
        """
        known = [(*place, highwater) for *place, highwater in self._places() if highwater is not None]
        ends: dict[TopicPartition, int] = {}
        if ask and known:
            with contextlib.suppress(KafkaError):  # the broker is away
                ends = self._consumer.end_offsets([place for place, *_ in known], timeout_ms=ASK_MS)
        return {
            (place.topic, place.partition): max(highwater - position, ends.get(place, 0) - position, 0)
            for place, position, highwater in known
            if position is not None
        }

    def condition(self) -> Condition:
        """Connected while the client has a connection to any broker."""
        return Condition(self._n_connections.value() > 0, dict(self._standing.skipped))

    def caught_up(self) -> bool:
        """Every assigned partition is read to the end that its last fetch told: nothing more is there for now.

        The fetch's high-water mark is asked, not ``end_offsets``: on Tansu those are too low. A partition that no
        fetch has answered for yet counts as read only if its beginning is its end (right on both brokers).
        False until the group has assigned partitions; a member that got none has caught up.
        """
        if not self._joined:
            return False
        silent = []
        for place, position, highwater in self._places():
            if highwater is None:
                silent.append(place)
            elif position is None or position < highwater:
                return False
        if not silent:
            return True
        return bool(self._consumer.beginning_offsets(silent) == self._consumer.end_offsets(silent))

    def close(self) -> None:
        """Leave the group and disconnect, within ten seconds."""
        if self._closed:
            return
        self._closed = True
        try:
            self._consumer.close(autocommit=False, timeout_ms=CLOSE_MS)
        except KafkaError as error:
            logger.warning("the consumer could not leave its group properly: %s", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_consumer(self, wait_ms: int) -> Any:
        settings = self._settings
        return KafkaConsumer(
            bootstrap_servers=settings.bootstrap_servers,
            bootstrap_timeout_ms=wait_ms,
            client_id=CLIENT_ID,
            group_id=settings.group,
            group_instance_id=settings.instance or None,
            enable_auto_commit=False,
            # An offset that is gone is an error to tell, never a reason to jump.
            auto_offset_reset="none",
            allow_auto_create_topics=False,
            metadata_max_age_ms=METADATA_AGE_MS,
            reconnect_backoff_max_ms=3_000,
            isolation_level="read_committed",
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=heartbeat_interval_ms(settings),
            max_poll_records=settings.max_poll_records,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
            **kafka_python_options(settings),
        )

    def _wait_for_topic(self, timeout_ms: int, stop: Callable[[], bool]) -> frozenset[int]:
        servers, topic = self._settings.bootstrap_servers, self._settings.topic
        start_seconds = told_seconds = time.monotonic()
        while True:
            try:
                partitions = self._consumer.partitions_for_topic(topic)
            except KafkaError as error:
                raise BrokerError(f"{servers} does not tell of topic `{topic}`: {error}") from error
            if partitions:
                return frozenset(partitions)
            if stop():
                raise StopAskedError(f"Asked to stop while waiting for topic `{topic}` at `{servers}`.")
            now_seconds = time.monotonic()
            if now_seconds - start_seconds >= timeout_ms / 1000:
                raise BrokerError(
                    f"Topic `{topic}` does not exist at `{servers}` after {timeout_ms / 1000:.0f} s. Create it, or set "
                    "kafka.topic or kafka.bootstrap_servers."
                )
            if now_seconds - told_seconds >= LOG_EVERY_SECONDS:
                logger.warning("waiting for topic %s at %s", topic, servers)
                told_seconds = now_seconds
            time.sleep(0.2)

    def _offsets_at(self, time_ms: int, partitions: Iterable[int]) -> Offsets:
        places = [TopicPartition(self._settings.topic, partition) for partition in partitions]
        try:
            # The ends first: what comes in between is read.
            ends = self._consumer.end_offsets(places)
            found = self._consumer.offsets_for_times(dict.fromkeys(places, time_ms))
        except KafkaError as error:
            raise unknown_times(self._settings, str(error)) from error
        return {
            (place.topic, place.partition): found[place].offset if found.get(place) else ends[place] for place in places
        }

    def _put(self, places: Iterable[TopicPartition]) -> None:
        """Put the reader of each assigned partition to its start."""
        for place in places:
            start = self._standing.start_of(place.partition)
            self._sought.pop(place, None)
            if isinstance(start, int):
                self._unresolved.discard(place)
                self._sought[place] = start
                self._consumer.seek(place, start)
                continue
            self._unresolved.add(place)
            if start == "beginning":
                self._consumer.seek_to_beginning(place)
            else:
                self._consumer.seek_to_end(place)

    def _resolve(self) -> list[TopicPartition]:
        """Turn a beginning or an end into a number as soon as the broker tells it; returns those it does not tell.

        Without it a snapshot would not name the partition, and the next run, or a rebalance, would start it elsewhere.
        """
        unknown = []
        for place in sorted(self._unresolved & self._consumer.assignment()):
            offset = self._where(place)
            if offset is None:
                unknown.append(place)
            else:
                self._standing.next[place.topic, place.partition] = offset
                self._unresolved.discard(place)
        return unknown

    def _places(self) -> list[tuple[TopicPartition, int | None, int | None]]:
        """Each assigned partition with position and high-water mark, the way the consumer sees them.

        The consumer's position, not the last record's: it also passes offsets that carry no record.
        """
        return [
            (place, self._where(place), self._consumer.highwater(place))
            for place in sorted(self._consumer.assignment())
        ]

    def _where(self, place: TopicPartition) -> int | None:
        """The consumer's position in a partition; None while it does not know, or cannot ask: the broker is away."""
        try:
            position: int | None = self._consumer.position(place, timeout_ms=RESOLVE_MS)
        except KafkaConnectionError:
            return None
        return position

    def _check_sought(self) -> None:
        """Tansu answers a fetch beyond the end with nothing, for ever; its high-water mark shows it."""
        doubtful = [
            place
            for place in set(self._sought) & self._consumer.assignment()
            if (highwater := self._consumer.highwater(place)) is not None and highwater < self._sought[place]
        ]
        if doubtful:
            self._miss("")
        for place in doubtful:
            self._sought.pop(place, None)

    def _miss(self, why: str) -> None:
        places = sorted(self._consumer.assignment())
        begins, ends = self._consumer.beginning_offsets(places), self._consumer.end_offsets(places)
        ranges = [
            (place.partition, begins[place], max(ends[place], self._consumer.highwater(place) or 0)) for place in places
        ]
        moved = self._standing.miss(ranges, why)
        self._put(TopicPartition(self._settings.topic, partition) for partition in moved)

    def _on_commit(self, offsets: object, response: object) -> None:
        failed = isinstance(response, Exception)
        if failed and not self._commit_failed:
            logger.warning("offsets could not be committed, lag tools may be behind: %s (%s)", response, offsets)
        self._commit_failed = failed


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Runs on the consumer's IO thread, within ``poll``: only seeks, which do not wait."""

    def __init__(self, source: KafkaSource) -> None:
        self._source = source

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        places = sorted(assigned)
        self._source._standing.tell([place.partition for place in places])
        self._source._put(places)
        self._source._joined = True

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        # kafka-python 3.0.12 forgets a join that new partitions began if `poll` returns before the group's answer: it
        # would stand still for ever, without a heartbeat. A join that is asked for is remembered until it is done.
        self._source._consumer._coordinator.request_rejoin()
        if revoked:
            logger.info("gave back %s", ", ".join(map(show, sorted(revoked))))
