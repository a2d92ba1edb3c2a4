"""What the streamer tells Prometheus (ALGORITHMS §9)."""

import threading
from collections.abc import Iterable
from multiprocessing.connection import Connection

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.registry import Collector

_ANSWER_SECONDS = 2.0


class StreamMetrics:
    """Counters and gauges of consumer, decoder and join."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self.consumed = counter("anabranch_events_consumed", "Events taken into the stream.", ("topic", "event"))
        self.rejected = counter("anabranch_events_rejected", "Records that could not become events.", ("reason",))
        self.duplicate = counter("anabranch_events_duplicate", "Events dropped since their id was seen before.")
        self.dead_letters = counter("anabranch_dlq_messages", "Records sent to the dead-letter topic.", ("reason",))
        self.lag = gauge("anabranch_consumer_lag_messages", "Records not read yet.", ("topic", "partition"))
        self.connected = gauge("anabranch_broker_connected", "1 while a broker is connected.")
        self.skipped = counter(
            "anabranch_offsets_skipped", "Offsets passed over: deleted before they were read.", ("topic", "partition")
        )
        self.last_event = gauge("anabranch_last_event_timestamp_seconds", "Newest event time read.", ("topic",))
        self.open_keys = gauge("anabranch_joiner_open_keys", "Exposures waiting for labels.")
        self.orphans = counter("anabranch_joiner_orphans", "Outcomes without an open exposure.", ("task",))
        self.evicted = counter("anabranch_joiner_evicted", "Exposures given up because too many were open.")
        self.forgotten = counter(
            "anabranch_state_evicted",
            "What was forgotten at a cap: users and items, counters of pairs, values and co-visits.",
            ("what",),
        )
        self.state_bytes = gauge(
            "anabranch_state_bytes", "Memory of profiles, open exposures and event ids seen.", ("what",)
        )
        self.ended_early = counter(
            "anabranch_deduplicate_ended_early",
            "Generations of event ids that ended before their time: they were full.",
        )
        self.late = counter("anabranch_labels_late", "Outcomes after their attribution window.", ("task",))


class RemoteMetrics(Collector):
    """The metrics of another process, asked for at each scrape (:func:`answer_scrapes`).

    Where it does not answer, or has ended, they stand as they were.
    """

    def __init__(self, connection: "Connection[None, list[Metric]]") -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._asked = False
        self._latest: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        with self._lock:
            try:
                if not self._asked:
                    self._connection.send(None)
                    self._asked = True
                # An answer that comes too late is the next scrape's.
                if self._connection.poll(_ANSWER_SECONDS):
                    self._latest = self._connection.recv()
                    self._asked = False
            except (EOFError, OSError):
                return self._latest
            return self._latest


def answer_scrapes(connection: "Connection[list[Metric], None]", registry: CollectorRegistry) -> None:
    """Send the registry's metrics whenever they are asked for, until nobody is there any more.

    :raises EOFError: the other side is gone.
    """
    while True:
        connection.recv()
        connection.send(list(registry.collect()))
