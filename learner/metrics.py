"""What the learner tells Prometheus (ALGORITHMS §9)."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from contracts.batch import Batch
from learner.evaluation import Quality
from learner.gain import MultiTaskGain
from learner.trainer import Trainer

_TABLE = "ids"  # one table serves all fields
_QUALITY_EVERY_BATCHES = 50


class LearnerMetrics:
    """Counters, gauges and histograms of trainer, quality, drift, table and snapshots.

    :param detector: the drift detector's name, for its label.
    """

    def __init__(self, registry: CollectorRegistry, detector: str) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self._detector = detector
        self._batches = 0
        self._told: dict[str, float] = {}
        self.examples = counter("anabranch_train_examples", "Labels learned from.", ("task",))
        self.positives = counter("anabranch_train_positives", "Positive labels learned from.", ("task",))
        self.late_positives = counter(
            "anabranch_train_late_positives", "Positive labels whose example had been learned as a negative.", ("task",)
        )
        self.batch_seconds = Histogram(
            "anabranch_train_batch_seconds",
            "Time of one step.",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5),
            registry=registry,
        )
        self.loss = gauge("anabranch_train_loss", "Mean prequential log-loss of the latest batch.", ("task",))
        self.skipped = counter(
            "anabranch_batches_skipped", "Batches skipped: a score, the loss or a gradient was not finite.", ("reason",)
        )
        self.ne = gauge(
            "anabranch_prequential_ne", "Normalised entropy; below 1 beats the base rate.", ("task", "window")
        )
        self.auc = gauge("anabranch_prequential_auc", "Area under the ROC curve.", ("task", "window"))
        self.calibration = gauge("anabranch_calibration_ratio", "Predicted over actual positives.", ("task", "window"))
        self.gain = gauge(
            "anabranch_mtl_gain_ne", "NE of single-task nets minus that of the model, on a share of users.", ("task",)
        )
        self.cosine = gauge(
            "anabranch_task_grad_cosine",
            "Cosine of two tasks' gradients where they meet; -1: full conflict.",
            ("a", "b"),
        )
        self.gate_entropy = gauge(
            "anabranch_gate_entropy", "Mean entropy of a task's gate; 1: all experts alike, 0: one alone.", ("task",)
        )
        self.drift = counter("anabranch_drift_alarms", "Changes found in the prequential loss.", ("detector", "task"))
        self.rows = gauge("anabranch_embedding_rows", "Rows in use.", ("table",))
        self.bytes = gauge("anabranch_embedding_bytes", "Bytes in use, map included.", ("table",))
        self.waiting = gauge("anabranch_waiting_bytes", "Bytes of the examples that wait for labels.")
        self.evicted = counter("anabranch_embedding_evicted", "Rows evicted at the cap.", ("table",))
        self.rejected = counter(
            "anabranch_embedding_admission_rejected", "Sightings of ids not yet admitted.", ("table",)
        )
        self.snapshot_seconds = Histogram(
            "anabranch_snapshot_seconds",
            "Time to write and publish a snapshot, while learning goes on.",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        self.snapshot_pause = Histogram(
            "anabranch_snapshot_pause_seconds",
            "Time that learning stood still for a snapshot or a delta: the copy, and waiting for the one before.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.5, 1, 5),
            registry=registry,
        )
        self.delta_seconds = Histogram(
            "anabranch_delta_seconds",
            "Time to write a delta, while learning goes on.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1),
            registry=registry,
        )
        self.delta_bytes = counter("anabranch_delta_bytes", "Bytes of the deltas written.")
        self.delta_rows = counter("anabranch_delta_rows", "Embedding rows in the deltas written.")
        self.snapshot_bytes = gauge("anabranch_snapshot_bytes", "Size of the latest snapshot.")
        self.snapshot_success = gauge(
            "anabranch_snapshot_last_success_timestamp_seconds", "When the latest snapshot was published."
        )
        self.snapshot_held = gauge(
            "anabranch_snapshot_held", "1 while the task's quality holds snapshots back, else 0.", ("task",)
        )
        self.snapshot_failures = counter(
            "anabranch_snapshot_failures", "Snapshots and deltas that could not be written."
        )

        self.standby = gauge("anabranch_standby", "1 while another learner writes the snapshots and this one waits.")

    def begin(self, trainer: Trainer) -> None:
        """Before the first step: every series is there from now on, and what a snapshot brought is not counted again.

        A counter that appears with a value, or jumps to the total of an earlier run, would mislead ``increase()``.
        """
        for task in trainer.layout.tasks:
            self.drift.labels(self._detector, task)
            self.snapshot_held.labels(task).set(0)
        for counter, name, total in self._totals(trainer):
            counter.inc(0)
            self._told[name] = total

    def stepped(self, trainer: Trainer, batch: Batch, seconds: float, pair: MultiTaskGain | None = None) -> None:
        """After a step; ``pair``: that learned the batch beside."""
        self.batch_seconds.observe(seconds)
        for task in trainer.drifted:
            self.drift.labels(self._detector, task).inc()
        self._batches += 1
        if self._batches % _QUALITY_EVERY_BATCHES == 0:
            self.refresh(trainer, batch.watermark_ms, pair)

    def refresh(self, trainer: Trainer, now_ms: int, pair: MultiTaskGain | None = None) -> None:
        """Bring the gauges up to date; adding up the windows costs more than a step should."""
        for counter, name, total in self._totals(trainer):
            counter.inc(total - self._told.get(name, 0.0))
            self._told[name] = total
        for task, loss in trainer.losses.items():
            self.loss.labels(task).set(loss)
        for (a, b), cosine in trainer.cosines.items():
            self.cosine.labels(a, b).set(cosine)
        for task, entropy in trainer.gate_entropies.items():
            self.gate_entropy.labels(task).set(entropy)
        for task, held in trainer.watchdog.held.items():
            self.snapshot_held.labels(task).set(held)
        self.rows.labels(_TABLE).set(trainer.table.n_rows)
        self.bytes.labels(_TABLE).set(trainer.table.n_bytes)
        self.waiting.set(trainer.n_waiting_bytes)
        self._tell_quality(trainer.quality, now_ms)
        for task, gain in (pair.ne(now_ms) if pair else {}).items():
            self.gain.labels(task).set(gain)

    def _tell_quality(self, quality: Quality, now_ms: int) -> None:
        everything = {task: metrics["all"] for task, metrics in quality.report().items()}
        for window, tasks in (("all", everything), ("sliding", quality.window(now_ms))):
            for task, metrics in tasks.items():
                for gauge, name in ((self.ne, "ne"), (self.auc, "auc"), (self.calibration, "calibration")):
                    value = metrics[name]
                    gauge.labels(task, window).set(float("nan") if value is None else value)

    def _totals(self, trainer: Trainer) -> Iterator[tuple[Counter, str, float]]:
        for index, task in enumerate(trainer.layout.tasks):
            yield self.examples.labels(task), f"examples {task}", float(trainer.n_learned[index])
            yield self.positives.labels(task), f"positives {task}", float(trainer.n_positives[index])
            yield self.late_positives.labels(task), f"late {task}", float(trainer.n_late[index])
        for reason, total in trainer.n_skipped.items():
            yield self.skipped.labels(reason), f"skipped {reason}", float(total)
        yield self.evicted.labels(_TABLE), "evicted", float(trainer.table.n_evicted)
        yield self.rejected.labels(_TABLE), "rejected", float(trainer.table.n_rejected)
