"""The same as `kafka.py` by confluent-kafka (librdkafka), at a fifth of its cost a record (ADR 10)."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Self

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from contracts.records import Offsets, Partition, Record
from contracts.settings import KafkaSettings
from streamer.connection import LOG_EVERY_SECONDS, BrokerError, StopAskedError, absent, connect, never, refused
from streamer.security import confluent_options
from streamer.sources._base import Condition
from streamer.sources._librdkafka import is_connected, librdkafka_logger
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

__all__ = ["ConfluentSource", "OffsetsLostError"]

logger = logging.getLogger(__name__)

# librdkafka reads ahead in its own threads, in units of fetches: up to so much waits here, and a fetch beyond.
READ_AHEAD_KILOBYTES = 32 << 10
REPORT_MS = 2_000
_POLL_INTERVAL_MS = 300_000  # the client's default
AT_ONCE = 500  # more messages at a time fall out of the processor's cache before they are records
_LOST = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION}
_MOVING = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}
_MOVING_SECONDS = 0.1
_FORBIDDEN = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED}
_new_record = tuple.__new__


class ConfluentSource:
    """A stream without end, read by confluent-kafka; partitions come and go with the group.

    Offsets, transactions, tombstones, threads, parameters and errors are as :class:`KafkaSource` says.
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
        self._reached: dict[int, int] = {}
        """The offset that reading of each assigned partition has come to, offsets without a record passed too."""
        self._sought: dict[int, int] = {}
        """Where a reader was put and has read nothing since: the place that may not exist."""
        self._found_end: dict[int, int] = {}
        """The offset at which a fetch found the end of an assigned partition."""
        self._joined = False
        self._connected = True
        self._failure: BrokerError | OffsetsLostError | None = None
        self._said = ""
        self._commit_failed = False
        self._consumer = connect(
            lambda _: Consumer(self._options(), logger=librdkafka_logger), settings, connect_timeout_ms, stop
        )
        try:
            partitions = self._wait_for_topic(connect_timeout_ms, stop)
            self._standing = Standing(settings, partitions)
            if resume is None and start_ms is not None:
                resume = self._offsets_at(start_ms, partitions)
            if resume is not None:
                self.seek(resume)
            self._consumer.subscribe([settings.topic], on_assign=self._on_assign, on_revoke=self._on_revoke)
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
        :raises BrokerError: the broker refuses this user, does not tell where an assigned partition begins, or another
            process has taken this one's name in the group.
        """
        if self._failure is not None:
            raise self._failure
        n_most = self._settings.max_poll_records
        polled = self._received(self._consumer.consume(min(AT_ONCE, n_most), 0))
        if not polled and self._failure is None:
            # One, then what came with it: asked for more than is there, `consume` waits the whole time.
            polled = self._received(self._consumer.consume(1, timeout_ms / 1000))
        while polled and len(polled) < n_most:
            messages = self._consumer.consume(min(AT_ONCE, n_most - len(polled)), 0)
            if not messages:
                break
            polled += self._received(messages)
        if not polled:
            self._check_sought()
            if self._failure is not None:
                raise self._failure
        return polled

    def _received(self, messages: list[Message]) -> list[Record]:
        """The records among these messages; what is wrong is kept until the records before it were returned."""
        topic = self._settings.topic
        # What every record passes. A named tuple's own __new__ takes its arguments twice as long.
        records = [
            _new_record(Record, (topic, m.partition(), m.offset(), m.key(), m.value() or b"", m.timestamp()[1]))
            for m in messages
            if m.error() is None
        ]
        read_to = {record[1]: record[2] + 1 for record in records}  # the last record of each partition stays
        for partition, offset in read_to.items():
            self._standing.next[topic, partition] = offset
            self._sought.pop(partition, None)
        self._reached.update(read_to)
        if len(records) < len(messages):
            self._take(message for message in messages if message.error() is not None)
        return records

    def position(self) -> Offsets:
        """The next offset of every partition that was read, or that the snapshot named.

        A partition that another member took over stays here as far as this source read it.
        """
        return dict(self._standing.next)

    def seek(self, offsets: Offsets) -> None:
        """Go on at a snapshot's offsets; a partition it does not name starts at its beginning.

        :raises ValueError: an offset of another topic, of a partition that is not there, or a negative one.
        """
        self._standing.seek(offsets)
        if self._reached:
            self._assign(self._reached)

    def commit(self, offsets: Offsets) -> None:
        """Tell the group where its members are, without waiting; a failure is only logged."""
        told = [
            TopicPartition(topic, partition, offset)
            for (topic, partition), offset in offsets.items()
            if topic == self._settings.topic and partition in self._reached
        ]
        if not told:
            return
        try:
            self._consumer.commit(offsets=told, asynchronous=True)
        except KafkaException as error:
            self._on_commit(error.args[0], told)

    def lag(self, *, ask: bool = False) -> dict[Partition, int]:
        """Records behind the end, by partition; one whose end no fetch has told yet is left out.

        Where the topic is transactional or compacted, offsets that carry no record count too.

        :param ask: the broker too; what it does not tell is as the last fetch told.
        """
        return {
            (self._settings.topic, partition): max(end - reached, 0)
            for partition, reached in self._reached.items()
            if (end := self._end(partition, ask=ask)) is not None
        }

    def condition(self) -> Condition:
        """Connected while any broker is, as of the client's last report (``REPORT_MS``)."""
        return Condition(self._connected, dict(self._standing.skipped))

    def caught_up(self) -> bool:
        """A fetch behind the last record of every assigned partition found nothing more, for now.

        Not by the end that the last fetch with records told: that is where the partition ended before them. False until
        the group has assigned partitions; a member that got none has caught up.
        """
        return self._joined and all(
            self._found_end.get(partition) == offset for partition, offset in self._reached.items()
        )

    def close(self) -> None:
        """Leave the group and disconnect."""
        if not self._closed:
            self._closed = True
            self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _options(self) -> dict[str, object]:
        settings = self._settings
        return {
            "bootstrap.servers": settings.bootstrap_servers,
            "client.id": CLIENT_ID,
            "group.id": settings.group,
            **({"group.instance.id": settings.instance} if settings.instance else {}),
            "enable.auto.commit": False,
            # An offset that is gone is an error to tell, never a reason to jump.
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
            "topic.metadata.refresh.interval.ms": METADATA_AGE_MS,
            "metadata.max.age.ms": 3 * METADATA_AGE_MS,
            "reconnect.backoff.max.ms": 3_000,
            "isolation.level": "read_committed",
            # kafka-python's first choice too: members of both clients can share a group.
            "partition.assignment.strategy": "range",
            "session.timeout.ms": settings.session_timeout_ms,
            # The client refuses to be silent for longer than it may go without a poll.
            "max.poll.interval.ms": max(_POLL_INTERVAL_MS, settings.session_timeout_ms),
            "heartbeat.interval.ms": heartbeat_interval_ms(settings),
            # The end of a partition comes as a message, with its offset: also where the last offsets carry no record.
            "enable.partition.eof": True,
            "check.crcs": True,
            "fetch.wait.max.ms": FETCH_WAIT_MS,
            "fetch.max.bytes": FETCH_BYTES,
            "max.partition.fetch.bytes": PARTITION_FETCH_BYTES,
            # Read ahead by bytes alone, and go on at once when there is room: with the defaults it stops for a second.
            "queued.min.messages": 1_000_000,
            "queued.max.messages.kbytes": READ_AHEAD_KILOBYTES,
            "fetch.queue.backoff.ms": 1,
            "error_cb": self._on_error,
            "on_commit": self._on_commit,
            "statistics.interval.ms": REPORT_MS,
            "stats_cb": self._on_report,
            **confluent_options(settings),
        }

    def _wait_for_topic(self, timeout_ms: int, stop: Callable[[], bool]) -> frozenset[int]:
        servers, topic = self._settings.bootstrap_servers, self._settings.topic
        start_seconds = told_seconds = time.monotonic()
        while True:
            self._consumer.poll(0)  # runs the callbacks
            if self._failure is not None:
                raise self._failure
            unreachable = ""
            try:
                found = self._consumer.list_topics(topic, timeout=1).topics[topic]
                if found.error is None and found.partitions:
                    return frozenset(found.partitions)
                if found.error is not None and found.error.code() in _FORBIDDEN:
                    raise BrokerError(f"{servers} does not tell of topic `{topic}`: {found.error.str()}")
            except KafkaException as error:
                unreachable = self._said or error.args[0].str()
            if stop():
                raise StopAskedError(f"Asked to stop while waiting for topic `{topic}` at `{servers}`.")
            now_seconds = time.monotonic()
            if now_seconds - start_seconds >= timeout_ms / 1000:
                if unreachable:
                    raise absent(servers, timeout_ms, unreachable)
                raise BrokerError(
                    f"Topic `{topic}` does not exist at `{servers}` after {timeout_ms / 1000:.0f} s. Create it, or set "
                    "kafka.topic or kafka.bootstrap_servers."
                )
            if now_seconds - told_seconds >= LOG_EVERY_SECONDS:
                logger.warning("waiting for topic %s at %s", topic, servers)
                told_seconds = now_seconds
            time.sleep(0.2)

    def _offsets_at(self, time_ms: int, partitions: Iterable[int]) -> Offsets:
        topic = self._settings.topic
        # The ends first: what comes in between is read.
        ends = {partition: self._range(partition)[1] for partition in partitions}
        asked = [TopicPartition(topic, partition, time_ms) for partition in ends]
        try:
            found = self._consumer.offsets_for_times(asked, timeout=RESOLVE_MS / 1000)
        except KafkaException as error:
            raise unknown_times(self._settings, error.args[0].str()) from error
        if wrong := [place for place in found if place.error is not None]:
            raise unknown_times(self._settings, f"{self._show(wrong[0].partition)}: {wrong[0].error}")
        return {
            (topic, place.partition): place.offset if place.offset >= 0 else ends[place.partition] for place in found
        }

    def _on_assign(self, _: Consumer, assigned: list[TopicPartition]) -> None:
        """Runs within ``poll``."""
        partitions = sorted(place.partition for place in assigned)
        self._standing.tell(partitions)
        self._assign(partitions)
        self._joined = True

    def _on_revoke(self, _: Consumer, revoked: list[TopicPartition]) -> None:
        if revoked:
            logger.info("gave back %s", ", ".join(self._show(partition) for partition in sorted(self._reached)))
        # All of them: "range" deals out everything anew.
        self._reached, self._sought, self._found_end = {}, {}, {}

    def _assign(self, partitions: Iterable[int]) -> None:
        """Put the reader of each partition to its start, as a number.

        A snapshot names the partition then, and the next run, or a rebalance, starts it there.
        """
        reached: dict[int, int] = {}
        self._sought, self._found_end = {}, {}
        for partition in partitions:
            start = self._standing.start_of(partition)
            if isinstance(start, int):
                self._sought[partition] = reached[partition] = start
            else:
                begin, end = self._range(partition)
                reached[partition] = begin if start == "beginning" else end
                self._standing.next[self._settings.topic, partition] = reached[partition]
        self._reached = reached
        self._consumer.assign([TopicPartition(self._settings.topic, *place) for place in reached.items()])

    def _range(self, partition: int) -> tuple[int, int]:
        """The first and the end offset, asked of the broker; where the partition's leader moves, again."""
        place, deadline = TopicPartition(self._settings.topic, partition), time.monotonic() + RESOLVE_MS / 1000
        while True:
            try:
                begin, end = self._consumer.get_watermark_offsets(place, timeout=RESOLVE_MS / 1000)
            except KafkaException as error:
                reason = error.args[0]
                if reason.code() in _MOVING and time.monotonic() < deadline:
                    time.sleep(_MOVING_SECONDS)
                    continue
                raise BrokerError(
                    f"{self._settings.bootstrap_servers} does not tell where {self._show(partition)} begins: "
                    f"{reason.str()}"
                ) from error
            return int(begin), int(end)

    def _end(self, partition: int, *, ask: bool = False) -> int | None:
        """The end that the last fetch told, or the later one of the broker, where it is asked (Tansu's is too low)."""
        place = TopicPartition(self._settings.topic, partition)
        end = int(self._consumer.get_watermark_offsets(place, cached=True)[1])
        if ask:
            with contextlib.suppress(KafkaException):  # the broker is away
                end = max(end, int(self._consumer.get_watermark_offsets(place, timeout=ASK_MS / 1000)[1]))
        return None if end == OFFSET_INVALID else end

    def _take(self, messages: Iterable[Message]) -> None:
        """Ends of partitions, and what is wrong."""
        for message in messages:
            error = message.error()
            assert error is not None  # noqa: S101 - the caller chose these
            code, partition = error.code(), message.partition()
            if code == KafkaError._PARTITION_EOF:
                if partition in self._reached:
                    self._reached[partition] = max(self._reached[partition], message.offset() or 0)
                    self._found_end[partition] = self._reached[partition]
                    self._check_sought()
            elif code in _LOST:
                # The client may tell it twice: the second time, of an offset that was left meanwhile.
                offset = message.offset()
                if offset is None or partition not in self._reached or offset >= self._reached[partition]:
                    self._miss(error.str())
            elif _is_fenced(error):
                self._failure = fenced(self._settings)
            elif code in _FORBIDDEN or code == KafkaError._FATAL:
                self._failure = BrokerError(f"{self._settings.bootstrap_servers} does not let us read: {error.str()}")
            else:
                logger.warning("%s: %s", self._settings.topic, error.str())

    def _check_sought(self) -> None:
        """Tansu answers a fetch beyond the end with nothing, for ever; the end that it tells shows it."""
        doubtful = [p for p, offset in self._sought.items() if (end := self._end(p)) is not None and end < offset]
        if doubtful:
            self._miss("")
        for partition in doubtful:
            self._sought.pop(partition, None)

    def _miss(self, why: str) -> None:
        found = []
        for partition in sorted(self._reached):
            begin, end = self._range(partition)
            found.append((partition, begin, max(end, self._end(partition) or 0)))
        try:
            moved = self._standing.miss(found, why)
        except OffsetsLostError as lost:
            self._failure = lost
        else:
            if moved:
                self._assign(list(self._reached))

    def _on_error(self, error: KafkaError) -> None:
        """What concerns a broker; librdkafka's own log lines tell it too."""
        self._said = error.str()
        if error.code() == KafkaError._AUTHENTICATION:
            self._failure = refused(self._settings, error.str())
        if _is_fenced(error):
            self._failure = fenced(self._settings)

    def _on_report(self, report: str) -> None:
        self._connected = is_connected(report)

    def _on_commit(self, error: KafkaError | None, offsets: object) -> None:
        if error is not None and _is_fenced(error):
            self._failure = fenced(self._settings)
        if error is not None and not self._commit_failed:
            logger.warning("offsets could not be committed, lag tools may be behind: %s (%s)", error.str(), offsets)
        self._commit_failed = error is not None

    def _show(self, partition: int) -> str:
        return show((self._settings.topic, partition))


def _is_fenced(error: KafkaError) -> bool:
    """Another member has this one's name: the broker's answer to a commit, or what ended the client at a heartbeat.

    The latter comes as a message of code ``_FATAL``, whose cause only its text names (and whose ``fatal()`` is False).
    """
    cause = KafkaError(KafkaError.FENCED_INSTANCE_ID)
    return error.code() == cause.code() or (error.code() == KafkaError._FATAL and cause.str() in error.str())
