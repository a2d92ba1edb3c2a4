"""The learner's loop: batches are learned, barriers become snapshots, written while learning goes on."""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import msgspec

from contracts.batch import Barrier, Batch, Layout
from contracts.records import Offsets
from contracts.settings import Settings
from contracts.shaping import differences_from
from learner.gain import MultiTaskGain
from learner.metrics import LearnerMetrics
from learner.quarantine import NotFiniteError, Quarantine
from learner.snapshot import Snapshot, SnapshotStore
from learner.trainer import Trainer
from learner.writer import INGEST, LEARNER, SnapshotWriter

__all__ = ["INGEST", "LEARNER", "LearnerLoop", "OtherSettingsError", "check_snapshot"]

log = logging.getLogger("anabranch.learner")

QUARANTINE = "quarantine"
"""The folder of skipped batches in the snapshots' directory."""


class LearnerLoop:
    """Learns a stream and publishes a snapshot at each barrier (:class:`learner.writer.SnapshotWriter`).

    :param store: None: barriers only pass by (`evaluate`).
    :param published: told the offsets of every published snapshot, for lag tools, by the writer's thread.
    :param give_up: makes the stream end, where the store is no longer this process's.
    :param pair: learns beside the trainer, to be compared and thrown away.
    """

    def __init__(
        self,
        settings: Settings,
        trainer: Trainer,
        metrics: LearnerMetrics,
        store: SnapshotStore | None,
        published: Callable[[Offsets], None] = lambda _: None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        give_up: Callable[[], None] = lambda: None,
        pair: MultiTaskGain | None = None,
    ) -> None:
        self._trainer = trainer
        self._pair = pair
        self._metrics = metrics
        self._writer = (
            None if store is None else SnapshotWriter(settings, trainer, metrics, store, published, clock_ms, give_up)
        )
        self._quarantine = Quarantine(store.directory / QUARANTINE, settings.snapshot.quarantine) if store else None
        self._held: list[str] = []
        self._settings = settings

    def run(self, stream: Iterable[Batch | Barrier], progress: Callable[[Batch], None] = lambda _: None) -> None:
        """Learn until the stream ends, once; then the last snapshot is waited for.

        :raises OSError: the last snapshot could not be written; an earlier failure is counted, and the next barrier
            tries again.
        """
        self._metrics.begin(self._trainer)
        with self._writer or nullcontext() as writer:
            for piece in stream:
                if isinstance(piece, Barrier):
                    self._cut(piece, writer)
                else:
                    self._step(piece)
                    progress(piece)
            failure = None if writer is None else writer.wait()
        if failure is not None:
            raise failure

    def _cut(self, barrier: Barrier, writer: SnapshotWriter | None) -> None:
        if not barrier.is_delta:
            self._metrics.refresh(self._trainer, barrier.event_time_ms, self._pair)
        if writer is None:
            barrier.release()
        elif barrier.event_time_ms < 0 or self._holds(barrier.n_events):
            writer.pass_over(barrier)
        elif barrier.is_delta:
            writer.delta(barrier)
        else:
            writer.snapshot(barrier)

    def _set_aside(self, batch: Batch, error: NotFiniteError) -> None:
        number = sum(self._trainer.n_skipped.values())
        kept = self._quarantine and self._quarantine.put(batch, self._trainer.matured_rows(batch), error, number)
        log.error(
            "A batch of %d events was skipped: %s; %s.",
            batch.n_events,
            error,
            f"kept in {kept}" if kept else "not kept",
        )

    def _holds(self, n_events: int) -> bool:
        """Whether the watchdog keeps this state from being published; a change is logged."""
        held = [task for task, is_held in self._trainer.watchdog.held.items() if is_held]
        if held and not self._held:
            log.error(
                "Snapshots are held back at %d events: the normalised entropy of %s has stayed above "
                "snapshot.hold_above_ne = %g. Learning goes on; the newest snapshot and its offsets stay as they are.",
                n_events,
                " and ".join(f"`{task}`" for task in held),
                self._settings.snapshot.hold_above_ne,
            )
        elif self._held and not held:
            log.info("Snapshots are no longer held back.")
        self._held = held
        return bool(held)

    def _step(self, batch: Batch) -> None:
        started = time.perf_counter()
        self._trainer.step(batch)
        seconds = time.perf_counter() - started
        if self._pair is not None:
            self._pair.step(batch)
        self._metrics.stepped(self._trainer, batch, seconds, self._pair)
        for task in self._trainer.drifted:
            log.warning("Drift: the prequential loss of `%s` has changed (now %.4f).", task, self._trainer.losses[task])
        if self._trainer.skipped is not None:
            self._set_aside(batch, self._trainer.skipped)


class OtherSettingsError(ValueError):
    """A snapshot was made under settings whose arrays have other shapes or meanings."""


def check_snapshot(snapshot: Snapshot, settings: Settings, layout: Layout) -> None:
    """A snapshot resumes only under the settings that shaped it.

    :raises OtherSettingsError: names both fingerprints, and the settings or columns that differ.
    """
    manifest = snapshot.manifest
    found = differences_from(manifest, settings)
    told = [str(one) for one in found] or [
        f"{name} of library version {manifest.library}: {manifest.layout.get(name)}"
        for name, value in msgspec.json.decode(msgspec.json.encode(layout)).items()
        if manifest.layout.get(name) != value
    ]
    if not told:
        return
    added = found and all(one.is_added for one in found)
    raise OtherSettingsError(
        f"Snapshot v{manifest.version:08d} was made under settings {manifest.settings_fingerprint}, these are "
        f"{settings.fingerprint()}: {'; '.join(told)}. "
        + ("Take up what is new with `learn --allow-new-tasks`, restore" if added else "Restore")
        + " the old settings, or give `snapshot.directory` a new, empty folder to start afresh."
    )
