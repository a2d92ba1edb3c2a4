"""Snapshots and deltas, cut while learning stands still and written while it goes on."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import msgspec

from contracts.batch import Barrier
from contracts.manifest import Manifest
from contracts.records import Offsets
from contracts.settings import Settings
from learner.metrics import LearnerMetrics
from learner.snapshot import SnapshotStore
from learner.snapshot_files import encode_state
from learner.trainer import Groups, Trainer

log = logging.getLogger("anabranch.learner")

INGEST, LEARNER = "ingest", "learner"
"""Names of the two sides' states in a snapshot."""


class SnapshotWriter:
    """Writes one thing at a time, in a thread; a context manager that waits for the last one:

    1. learning stops for a copy of what changed since the last one (:meth:`Trainer.capture`);
    2. the thread encodes, writes and publishes the copy;
    3. only what is published is told (``published``), and the barrier is released: the ingest may make the next one.

    A delta goes behind a snapshot that this run published, or behind the delta before. Where anything could not be
    written or was passed over, the next one is a whole snapshot: what changed before a gap is in no delta behind it.

    :param published: told the offsets of every published snapshot, by the writer's thread.
    :param give_up: called where something cannot be published, and not for the disk: the stream shall end.
    """

    def __init__(
        self,
        settings: Settings,
        trainer: Trainer,
        metrics: LearnerMetrics,
        store: SnapshotStore,
        published: Callable[[Offsets], None],
        clock_ms: Callable[[], int],
        give_up: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._trainer = trainer
        self._metrics = metrics
        self._store = store
        self._published = published
        self._clock_ms = clock_ms
        self._give_up = give_up
        self._writing: Future[None] | None = None
        self._newest: Manifest | None = None  # what the next delta goes behind
        self._failure: OSError | None = None

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(1, "anabranch-snapshot")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def wait(self) -> OSError | None:
        """Wait for what is being written; returns the error of the last snapshot, if the disk failed."""
        if self._writing is not None:
            self._writing.result()
        return self._failure

    def snapshot(self, barrier: Barrier) -> None:
        """Begin a snapshot at a barrier, which is released when it is written.

        :raises SnapshotError: the one before could not be published, and not for the disk.
        """
        started = time.perf_counter()
        self.wait()
        finish, state = self._trainer.capture()
        frozen = msgspec.Raw(encode_state(LEARNER, state))
        self._newest = None
        self._writing = self._pool.submit(self._run, self._publish, barrier, finish, frozen)
        self._metrics.snapshot_pause.observe(time.perf_counter() - started)

    def delta(self, barrier: Barrier) -> None:
        """Begin a delta at its cut, where there is something that it can go behind.

        :raises SnapshotError: the one before could not be published, and not for the disk.
        """
        started = time.perf_counter()
        self.wait()
        base, self._newest = self._newest, None
        if base is None:
            barrier.release()
            return
        finish = self._trainer.capture_delta()
        self._writing = self._pool.submit(self._run, self._publish_delta, base, barrier, finish)
        self._metrics.snapshot_pause.observe(time.perf_counter() - started)

    def pass_over(self, barrier: Barrier) -> None:
        """Write nothing at this cut."""
        self.wait()
        self._newest = None
        barrier.release()

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException:
            # Whoever waits for events on a quiet topic would not ask what became of this for hours.
            self._give_up()
            raise

    def _publish(self, barrier: Barrier, finish: Callable[[], Groups], state: msgspec.Raw) -> None:
        try:
            self._failure = self._write(barrier, finish, state)
        finally:
            barrier.release()

    def _write(self, barrier: Barrier, finish: Callable[[], Groups], state: msgspec.Raw) -> OSError | None:
        started = time.perf_counter()
        layout = self._trainer.layout
        try:
            manifest = self._store.publish(
                {**barrier.groups, **finish()},
                {INGEST: barrier.state, LEARNER: state},
                created_ms=self._clock_ms(),
                event_time_ms=barrier.event_time_ms,
                n_events=barrier.n_events,
                offsets=barrier.offsets,
                settings_fingerprint=self._settings.fingerprint(),
                tasks=layout.tasks,
                layout=asdict(layout),
                settings=self._settings.shaping(),
            )
        except OSError as error:
            self._metrics.snapshot_failures.inc()
            log.exception("Snapshot failed; learning goes on and the next barrier tries again.")
            return error
        seconds = time.perf_counter() - started
        self._newest = manifest
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

    def _publish_delta(self, base: Manifest, barrier: Barrier, finish: Callable[[], Groups]) -> None:
        started = time.perf_counter()
        groups = {**finish(), **barrier.groups}
        try:
            self._newest = manifest = self._store.publish_delta(
                base, groups, created_ms=self._clock_ms(), event_time_ms=barrier.event_time_ms
            )
        except OSError:
            self._metrics.snapshot_failures.inc()
            log.exception("Delta failed; there are none until the next snapshot.")
            return
        finally:
            barrier.release()
        self._metrics.delta_seconds.observe(time.perf_counter() - started)
        self._metrics.delta_bytes.inc(manifest.total_bytes)
        self._metrics.delta_rows.inc(len(groups["table"]["row"]))
