"""The learner's loop: batches are learned, barriers become snapshots, written while learning goes on."""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict

import msgspec

from contracts.batch import Barrier, Batch, Layout
from contracts.records import Offsets
from contracts.settings import Settings
from learner.metrics import LearnerMetrics
from learner.snapshot import Snapshot, SnapshotStore
from learner.snapshot_files import encode_state
from learner.trainer import Groups, Trainer

log = logging.getLogger("anabranch.learner")

INGEST, LEARNER = "ingest", "learner"
"""Names of the two sides' states in a snapshot."""


class LearnerLoop:
    """Learns a stream and publishes a snapshot at each barrier:

    1. learning stops for a copy of what changed since the last one (:meth:`Trainer.capture`);
    2. a thread encodes, writes and publishes the copy while learning goes on;
    3. only what is published is told (``published``), and the barrier is released: the ingest may make the next one.

    One snapshot is written at a time: a barrier that comes earlier waits. The run ends when the last one is written.

    :param store: None: barriers only pass by (`evaluate`).
    :param published: told the offsets of every published snapshot, for lag tools, by the writer's thread.
    """

    def __init__(
        self,
        settings: Settings,
        trainer: Trainer,
        metrics: LearnerMetrics,
        store: SnapshotStore | None,
        published: Callable[[Offsets], None] = lambda _: None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._settings = settings
        self._trainer = trainer
        self._metrics = metrics
        self._store = store
        self._published = published
        self._clock_ms = clock_ms

    def run(self, stream: Iterable[Batch | Barrier], progress: Callable[[Batch], None] = lambda _: None) -> None:
        """Learn until the stream ends.

        :raises OSError: the last snapshot could not be written; an earlier failure is counted, and the next barrier
            tries again.
        """
        self._metrics.begin(self._trainer)
        written: Future[OSError | None] | None = None
        with ThreadPoolExecutor(1, "anabranch-snapshot") as writer:
            for piece in stream:
                if isinstance(piece, Barrier):
                    self._metrics.refresh(self._trainer, piece.event_time_ms)
                    if self._store is None or piece.event_time_ms < 0:
                        piece.release()
                        continue
                    started = time.perf_counter()
                    if written is not None:
                        written.result()
                    written = writer.submit(self._publish, self._store, piece, *self._captured())
                    self._metrics.snapshot_pause.observe(time.perf_counter() - started)
                else:
                    self._step(piece)
                    progress(piece)
        failure = written.result() if written is not None else None
        if failure is not None:
            raise failure

    def _step(self, batch: Batch) -> None:
        started = time.perf_counter()
        self._trainer.step(batch)
        self._metrics.stepped(self._trainer, batch, time.perf_counter() - started)
        for task in self._trainer.drifted:
            log.warning("Drift: the prequential loss of `%s` has changed (now %.4f).", task, self._trainer.losses[task])

    def _captured(self) -> tuple[Callable[[], Groups], msgspec.Raw]:
        finish, state = self._trainer.capture()
        return finish, msgspec.Raw(encode_state(LEARNER, state))

    def _publish(
        self, store: SnapshotStore, barrier: Barrier, finish: Callable[[], Groups], state: msgspec.Raw
    ) -> OSError | None:
        """Write a snapshot and tell of it, in the writer's thread; returns the error of a disk that failed."""
        try:
            return self._write(store, barrier, finish, state)
        finally:
            barrier.release()

    def _write(
        self, store: SnapshotStore, barrier: Barrier, finish: Callable[[], Groups], state: msgspec.Raw
    ) -> OSError | None:
        started = time.perf_counter()
        try:
            manifest = store.publish(
                {**barrier.groups, **finish()},
                {INGEST: barrier.state, LEARNER: state},
                created_ms=self._clock_ms(),
                event_time_ms=barrier.event_time_ms,
                n_events=barrier.n_events,
                offsets=barrier.offsets,
                settings_fingerprint=self._settings.fingerprint(),
                tasks=self._trainer.layout.tasks,
                layout=asdict(self._trainer.layout),
            )
        except OSError as error:
            self._metrics.snapshot_failures.inc()
            log.exception("Snapshot failed; learning goes on and the next barrier tries again.")
            return error
        seconds = time.perf_counter() - started
        self._metrics.snapshot_seconds.observe(seconds)
        self._metrics.snapshot_bytes.set(manifest.total_bytes)
        self._metrics.snapshot_success.set(self._clock_ms() / 1000)
        log.info(
            "Snapshot v%08d: %d events, %.1f MB in %.2f s.",
            manifest.version,
            manifest.n_events,
            manifest.total_bytes / 1e6,
            seconds,
        )
        self._published(barrier.offsets)
        return None


class OtherSettingsError(ValueError):
    """A snapshot was made under settings whose arrays have other shapes or meanings."""


def check_snapshot(snapshot: Snapshot, settings: Settings, layout: Layout) -> None:
    """A snapshot resumes only under the settings that shaped it.

    :raises OtherSettingsError: names both fingerprints, and the tasks or columns that differ.
    """
    manifest = snapshot.manifest
    found, expected = manifest.settings_fingerprint, settings.fingerprint()
    differ = [
        name if name == "dense" else f"{name}: snapshot {manifest.layout.get(name)}, settings {value}"
        for name, value in msgspec.json.decode(msgspec.json.encode(layout)).items()
        if manifest.layout.get(name) != value
    ]
    if found == expected and not differ:
        return
    if found == expected:
        differ.append(f"the snapshot is of library version {manifest.library}")
    raise OtherSettingsError(
        f"Snapshot v{manifest.version:08d} was made under settings {found}, these are {expected} "
        f"({'; '.join(differ) or 'features, model, embedding, events, negatives or batch differ'}). "
        "Restore the old settings, or give `snapshot.directory` a new, empty folder to start afresh."
    )
