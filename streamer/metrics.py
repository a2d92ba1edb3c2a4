"""What the streamer tells Prometheus (ALGORITHMS §9)."""

from prometheus_client import CollectorRegistry, Counter, Gauge


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
        self.last_event = gauge("anabranch_last_event_timestamp_seconds", "Newest event time read.", ("topic",))
        self.open_keys = gauge("anabranch_joiner_open_keys", "Exposures waiting for labels.")
        self.orphans = counter("anabranch_joiner_orphans", "Outcomes without an open exposure.", ("task",))
        self.evicted = counter("anabranch_joiner_evicted", "Exposures given up because too many were open.")
        self.late = counter("anabranch_labels_late", "Outcomes after their attribution window.", ("task",))
