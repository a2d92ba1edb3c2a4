"""What the scoring worker tells Prometheus (ALGORITHMS §9)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from contracts.manifest import Manifest


class ServingMetrics:
    """Latency, requests, the version that is served and how old its newest event is."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "anabranch_score_seconds",
            "Time to answer, from body read to reply encoded.",
            ("route",),
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1),
            registry=registry,
        )
        self.requests = Counter("anabranch_score_requests", "Requests answered.", ("route", "code"), registry=registry)
        self.version = Gauge(
            "anabranch_model_version_info", "1 for the version served.", ("version",), registry=registry
        )
        self.age = Gauge(
            "anabranch_model_age_seconds", "Age of the newest event in the model served.", registry=registry
        )
        self.age.set(float("nan"))  # no model is not a fresh one
        self.event_to_score = Histogram(
            "anabranch_event_to_score_seconds",
            "From an event's time to the first version served that contains it (the newest event of each version).",
            buckets=(0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900),
            registry=registry,
        )
        self.reload_failures = Counter(
            "anabranch_reload_failures",
            "Snapshots and deltas that could not be loaded; the version before goes on serving.",
            registry=registry,
        )

    def swapped(self, manifest: Manifest, now_ms: int) -> None:
        """A version, or one with further deltas, began to be served."""
        self.version.clear()
        self.version.labels(str(manifest.version)).set(1)
        self.event_to_score.observe(max(now_ms - manifest.event_time_ms, 0) / 1000)
