"""Where records go that cannot become events: with their bytes, their place and the reason."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, RecordListTooLargeError

from contracts.records import Record
from contracts.settings import KafkaSettings
from streamer.broker import create_topics
from streamer.connection import close_producer, connect, never
from streamer.security import kafka_python_options

logger = logging.getLogger(__name__)

MAX_PENDING = 10_000
MAX_DETAIL_CHARACTERS = 2_000
CUT_BYTES = 100_000
TOPIC_WAIT_MS = 15_000
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


class DeadLetterError(RuntimeError):
    """Bad records could not be stored: the snapshot behind them must not be published."""


class DeadLetterSink(Protocol):
    """What keeps bad records.

    Before a snapshot that stands behind a bad record is published, ``flush`` has returned: no bad record is lost.
    """

    def send(self, record: Record, reason: str, detail: str) -> None:
        """Hand over one record; it may not be stored yet."""

    def flush(self, timeout_s: float) -> None:
        """Return once everything sent is stored.

        :raises DeadLetterError: something was not.
        """

    def close(self) -> None:
        """Let go of connections, without waiting for what was not flushed; calling it twice is fine."""


class DeadLetter(NamedTuple):
    """One bad record and what is wrong with it."""

    record: Record
    reason: str
    detail: str


class MemoryDeadLetters:
    """The last bad records in a list: for files and tests."""

    def __init__(self, max_letters: int = 10_000) -> None:
        self.letters: deque[DeadLetter] = deque(maxlen=max_letters)

    def send(self, record: Record, reason: str, detail: str) -> None:
        """Keep it; the oldest goes when there are too many."""
        self.letters.append(DeadLetter(record, reason, detail))

    def flush(self, timeout_s: float) -> None:
        """Nothing is on its way."""

    def close(self) -> None:
        """Nothing to let go of."""


class KafkaDeadLetters:
    """Bad records to the dead-letter topic: original value and key; reason, detail and place as headers.

    Headers: ``anabranch-reason``, ``-detail``, ``-topic``, ``-partition``, ``-offset``. A record that the dead-letter
    topic refuses for its size is stored with its first bytes only and ``anabranch-original-bytes``: the place still
    names the whole one, and one huge record does not stop the stream.

    Delivery is at least once: a run that resumes sends the bad records behind its snapshot again.

    :param stop: gives up the wait for a broker.
    :raises BrokerError: no broker, or the topic is missing and cannot be created.
    :raises StopAskedError: ``stop`` said so.
    """

    def __init__(
        self, settings: KafkaSettings, connect_timeout_ms: int = 30_000, stop: Callable[[], bool] = never
    ) -> None:
        self._topic = settings.dead_letters
        create_topics(settings, {self._topic: 1}, connect_timeout_ms, stop)
        self._producer: Any = connect(
            lambda wait_ms: KafkaProducer(
                bootstrap_servers=settings.bootstrap_servers,
                bootstrap_timeout_ms=wait_ms,
                client_id="anabranch-dead-letters",
                acks="all",
                enable_idempotence=False,  # twice is fine here, and Tansu works better without
                compression_type="lz4",
                linger_ms=20,
                max_block_ms=TOPIC_WAIT_MS,
                allow_auto_create_topics=False,
                max_request_size=64 << 20,  # whether a record is too large is the broker's to say
                **kafka_python_options(settings),
            ),
            settings,
            connect_timeout_ms,
            stop,
        )
        self._pending: list[tuple[Any, DeadLetter]] = []
        self._closed = False

    def send(self, record: Record, reason: str, detail: str) -> None:
        """Hand over to the producer; waits only when very many are on their way.

        :raises DeadLetterError: as :meth:`flush`, when it has to wait.
        """
        self._send(DeadLetter(record, reason, detail), record.value)
        if len(self._pending) >= MAX_PENDING:
            self._pending = [(future, letter) for future, letter in self._pending if not future.succeeded()]
            if len(self._pending) >= MAX_PENDING:
                self.flush(60.0)

    def flush(self, timeout_s: float) -> None:
        """Wait until all were stored; those refused for their size are stored cut.

        :raises DeadLetterError: timed out, or the broker refused one. They stay pending: a later flush tells again.
        """
        self._wait(timeout_s)
        for future, letter in self._pending:
            if future.failed() and isinstance(future.exception, _TOO_LARGE):
                logger.warning(
                    "%s[%d] offset %d: %d bytes are too many for %s; its first %d are stored",
                    *letter.record[:3], len(letter.record.value), self._topic, CUT_BYTES,
                )  # fmt: skip
                self._send(letter, letter.record.value[:CUT_BYTES])
        self._pending = [
            (future, letter)
            for future, letter in self._pending
            if not (future.failed() and isinstance(future.exception, _TOO_LARGE))
        ]
        self._wait(timeout_s)
        self._pending = [(future, letter) for future, letter in self._pending if not future.succeeded()]
        if self._pending:
            future, letter = self._pending[0]
            raise DeadLetterError(
                f"{len(self._pending)} bad records are not stored in `{self._topic}`; first {letter.record.topic}"
                f"[{letter.record.partition}] offset {letter.record.offset}: {future.exception!r}. "
                "Repair the topic or its rights, then restart."
            )

    def close(self) -> None:
        """Disconnect; what was not flushed is sent again by the run that resumes."""
        if not self._closed:
            self._closed = True
            close_producer(self._producer, timeout_s=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, letter: DeadLetter, value: bytes) -> None:
        record = letter.record
        headers = [
            ("anabranch-reason", letter.reason.encode()),
            ("anabranch-detail", letter.detail[:MAX_DETAIL_CHARACTERS].encode(errors="replace")),
            ("anabranch-topic", record.topic.encode()),
            ("anabranch-partition", b"%d" % record.partition),
            ("anabranch-offset", b"%d" % record.offset),
        ]
        if len(value) < len(record.value):
            headers.append(("anabranch-original-bytes", b"%d" % len(record.value)))
        try:
            future = self._producer.send(self._topic, value=value, key=record.key, headers=headers)
        except _TOO_LARGE:
            self._send(letter, value[:CUT_BYTES])
            return
        except KafkaError as error:
            raise DeadLetterError(f"A bad record cannot be sent to `{self._topic}`: {error}") from error
        self._pending.append((future, letter))

    def _wait(self, timeout_s: float) -> None:
        try:
            self._producer.flush(timeout=timeout_s)
        except KafkaTimeoutError as error:
            raise DeadLetterError(
                f"{len(self._pending)} bad records are not stored in `{self._topic}` after {timeout_s:g} s. "
                "Is the broker there?"
            ) from error
