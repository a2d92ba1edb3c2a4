"""Events into Kafka: what `anabranch replay`, `anabranch simulate` and the scorer's event endpoint use."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from contracts.events import Event
from streamer.broker import connect

MAX_IN_FLIGHT = 20_000
CHECK_EVERY = 500


class PublishError(RuntimeError):
    """Events did not reach the topic."""


class EventPublisher:
    """Events as canonical JSON, keyed by user: one user's events share a partition and keep their order.

    Events are sent in the background; a failure surfaces at a later ``publish`` or at ``flush``.

    :param rate_per_s: at most so many events a second, evenly spread; None: as fast as they come.
    :param clock: seconds, monotonic.
    :param sleep: waits so many seconds.
    :raises BrokerError: no broker.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        rate_per_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        connect_timeout_ms: int = 30_000,
    ) -> None:
        if rate_per_s is not None and rate_per_s <= 0:
            raise ValueError(f"rate_per_s must be positive; found {rate_per_s}")
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
                bootstrap_servers=bootstrap_servers,
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
                max_block_ms=15_000,  # how long a missing topic is waited for
            ),
            bootstrap_servers,
            connect_timeout_ms,
        )

    @property
    def n_sent(self) -> int:
        """Events handed over so far."""
        return self._n_sent

    def publish(self, event: Event) -> None:
        """Send one event, after waiting for its turn if there is a rate.

        :raises PublishError: an earlier event failed, or the topic does not exist.
        """
        if self._rate_per_s is not None:
            self._wait_for_turn(self._rate_per_s)
        try:
            future = self._producer.send(self._topic, value=self._encode(event), key=str(event.user_id).encode())
        except (KafkaError, ValueError) as error:
            raise PublishError(f"Topic `{self._topic}` does not take the event: {error}") from error
        future.add_errback(self._on_failure)
        self._n_sent += 1
        if self._n_sent % CHECK_EVERY == 0:
            self._bound(future)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Return once every event is stored.

        :raises PublishError: one is not.
        """
        try:
            self._producer.flush(timeout=timeout_s)
        except KafkaTimeoutError as error:
            raise PublishError(f"Topic `{self._topic}` did not take all events within {timeout_s:.0f} s.") from error
        self._in_flight.clear()
        self._raise_failure()

    def close(self) -> None:
        """Disconnect, after a short wait for what is on its way; ``flush`` first to be sure."""
        if not self._closed:
            self._closed = True
            self._producer.close(timeout=10)

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

    def _bound(self, future: Any) -> None:
        """Hold what is on its way below a limit: the producer's own buffer has none."""
        self._raise_failure()
        self._in_flight.append(future)
        if len(self._in_flight) * CHECK_EVERY > MAX_IN_FLIGHT:
            oldest = self._in_flight.popleft()
            try:
                oldest.get(timeout=120)
            except KafkaError as error:
                raise PublishError(f"Topic `{self._topic}` did not take an event: {error}") from error

    def _on_failure(self, error: BaseException) -> None:
        self._failure = self._failure or error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise PublishError(f"Topic `{self._topic}` did not take an event: {self._failure}") from self._failure
