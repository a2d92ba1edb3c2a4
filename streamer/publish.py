"""Events into Kafka: what `anabranch replay`, `anabranch simulate` and the scorer's event endpoint use."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Self

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.partitioner.default import murmur2

from contracts.events import Event
from contracts.settings import KafkaSettings
from streamer.connection import close_producer, connect, reached_by
from streamer.security import kafka_python_options

MAX_IN_FLIGHT = 20_000
CHECKED_AT_ONCE = 1_000
CACHED_USERS = 1 << 16
TOPIC_WAIT_MS = 15_000


class PublishError(RuntimeError):
    """Events did not reach the topic."""


class EventPublisher:
    """Events as canonical JSON, keyed by user: one user's events share a partition and keep their order.

    Events are sent in the background; a failure surfaces at a later ``publish`` or at ``flush``.

    :param kafka: servers, or settings where the broker asks for SASL or TLS.
    :param rate_per_s: at most so many events a second, evenly spread; None: as fast as they come.
    :param clock: seconds, monotonic.
    :param sleep: waits so many seconds.
    :raises BrokerError: no broker.
    :raises PublishError: no such topic (Tansu creates it instead).
    """

    def __init__(
        self,
        kafka: str | KafkaSettings,
        topic: str,
        rate_per_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        connect_timeout_ms: int = 30_000,
    ) -> None:
        if rate_per_s is not None and rate_per_s <= 0:
            raise ValueError(f"rate_per_s must be positive; found {rate_per_s}")
        settings = reached_by(kafka)
        self._topic = topic
        self._rate_per_s = rate_per_s
        self._clock = clock
        self._sleep = sleep
        self._encode = msgspec.json.Encoder().encode
        self._n_sent = 0
        self._start_seconds: float | None = None
        self._in_flight: deque[Any] = deque()
        self._failure: BaseException | None = None
        self._closed = False
        self._producer: Any = connect(
            lambda wait_ms: KafkaProducer(
                bootstrap_servers=settings.bootstrap_servers,
                bootstrap_timeout_ms=wait_ms,
                client_id="anabranch-publisher",
                acks="all",
                # One request on its way at a time keeps the order through retries; the idempotent producer would
                # too, but Tansu works better without.
                enable_idempotence=False,
                max_in_flight_requests_per_connection=1,
                compression_type="lz4",
                batch_size=256 << 10,
                linger_ms=20,
                max_block_ms=TOPIC_WAIT_MS,
                allow_auto_create_topics=False,  # a misspelt topic is an error
                max_request_size=64 << 20,  # whether a record is too large is the broker's to say
                **kafka_python_options(settings),
            ),
            settings,
            connect_timeout_ms,
        )
        try:
            self._n_partitions = len(self._producer.partitions_for(topic))
        except (KafkaError, ValueError) as error:
            self.close()
            raise PublishError(
                f"Topic `{topic}` is not there at {settings.bootstrap_servers}: {error}. Create it."
            ) from error
        # kafka-python hashes a key in Python at every send: a fifth of the whole cost.
        self._place = lru_cache(CACHED_USERS)(self._partition_of)

    @property
    def n_sent(self) -> int:
        """Events handed over so far."""
        return self._n_sent

    def publish(self, event: Event) -> None:
        """Send one event, after waiting for its turn if there is a rate.

        :raises PublishError: this event cannot be sent, or an earlier one was not taken.
        """
        self.publish_bytes(self._encode(event), str(event.user_id).encode())

    def publish_bytes(self, value: bytes, key: bytes | None) -> None:
        """Likewise a record that is not to be encoded; without a key it goes to any partition."""
        if self._rate_per_s is not None:
            self._wait_for_turn(self._rate_per_s)
        partition = None if key is None else self._place(key)
        try:
            future = self._producer.send(self._topic, value=value, key=key, partition=partition)
        except (KafkaError, ValueError) as error:
            raise PublishError(f"Topic `{self._topic}` does not take the event: {error}") from error
        self._n_sent += 1
        self._in_flight.append(future)
        # The producer's own buffer has no limit: wait for the oldest instead.
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            self._check([self._in_flight.popleft() for _ in range(min(CHECKED_AT_ONCE, MAX_IN_FLIGHT))])

    def flush(self, timeout_s: float = 60.0) -> None:
        """Return once every event is stored.

        :raises PublishError: one is not.
        """
        try:
            self._producer.flush(timeout=timeout_s)
        except KafkaTimeoutError as error:
            raise PublishError(f"Topic `{self._topic}` did not take all events within {timeout_s:.0f} s.") from error
        in_flight, self._in_flight = self._in_flight, deque()
        self._check(in_flight)

    def close(self) -> None:
        """Disconnect, after a short wait for what is on its way; ``flush`` first to be sure."""
        if not self._closed:
            self._closed = True
            close_producer(self._producer, timeout_s=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        try:
            if failed is None:
                self.flush()
        finally:
            self.close()

    def _wait_for_turn(self, rate_per_s: float) -> None:
        now_seconds = self._clock()
        if self._start_seconds is None:
            self._start_seconds = now_seconds - self._n_sent / rate_per_s
        ahead_seconds = self._start_seconds + self._n_sent / rate_per_s - now_seconds
        if ahead_seconds > 0:
            self._sleep(ahead_seconds)

    def _check(self, futures: Iterable[Any]) -> None:
        """Wait for these; the first failure stays: every later flush tells it again."""
        for future in futures:
            try:
                if not future.is_done:
                    future.get(timeout=120)
                elif future.failed():
                    self._failure = self._failure or future.exception
            except KafkaError as error:
                self._failure = self._failure or error
        if self._failure is not None:
            raise PublishError(f"Topic `{self._topic}` did not take an event: {self._failure}") from self._failure

    def _partition_of(self, key: bytes) -> int:
        """Kafka's own choice for a key, so that other producers put the same user in the same place."""
        return int((murmur2(key) & 0x7FFFFFFF) % self._n_partitions)
