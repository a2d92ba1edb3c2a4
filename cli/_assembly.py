"""Streamer and learner put together: what `learn`, `evaluate` and `demo` run."""

import gc
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry

from cli._growth import take_up
from contracts.batch import INGEST_GROUPS, Batch
from contracts.settings import Settings
from features.schema import FeatureSchema
from learner.comparison import Comparison
from learner.gain import MultiTaskGain
from learner.inspection import LastRows
from learner.loop import INGEST, LEARNER, LearnerLoop, OtherSettingsError, check_snapshot
from learner.metrics import LearnerMetrics
from learner.snapshot import Snapshot, SnapshotStore
from learner.trainer import Trainer, use_threads
from streamer.deadletter import DeadLetterSink
from streamer.decode import EventDecoder
from streamer.feed import Feed, Inputs
from streamer.prefetch import ThreadFeed
from streamer.sources._base import Source


@dataclass
class Assembly:
    """What learns a stream: ingest → learner → snapshots."""

    feed: Feed
    trainer: Trainer
    loop: LearnerLoop
    comparison: Comparison | None = None
    last_rows: LastRows | None = None
    """What a report looks at afterwards."""

    def run(self, progress: Callable[[Batch], None] = lambda _: None) -> None:
        """Learn until the source ends or a stop is asked for."""
        # Torch and numba brought a million objects that live as long as the process: the garbage collector need not
        # look at them again and again while the stream runs. Nor once before: that takes a third of a second.
        gc.freeze()
        gc.enable()
        try:
            with closing(self.feed.stream()) as stream:
                self.loop.run(stream, partial(self._learned, progress))
        finally:
            gc.unfreeze()

    def _learned(self, progress: Callable[[Batch], None], batch: Batch) -> None:
        if self.last_rows is not None:
            self.last_rows.take(batch)
        if self.comparison is not None:
            self.comparison.step(batch)
        progress(batch)

    def close_open_windows(self) -> None:
        """At the end of a log: count what still waits for labels as it stands; nothing is learned or saved."""
        rest = self.feed.close_open_windows()
        self.trainer.measure(rest)
        self.trainer.quality.finish()
        if self.last_rows is not None:
            self.last_rows.finish(rest)
        if self.comparison is not None:
            self.comparison.finish(rest)

    def report(self, seconds: float, model: str) -> dict[str, Any]:
        """The object that `evaluate --json` prints (DESIGN §7)."""
        tasks = self.trainer.quality.report()
        compared = self.comparison.report(self.trainer.quality) if self.comparison is not None else None
        return {
            "events": self.feed.standing.n_events,
            "examples": sum(task["examples"] for task in tasks.values()),
            "rejected": self.feed.standing.n_rejected,
            "seconds": round(seconds, 3),
            "model": model,
            "tasks": tasks,
            **({"compare": compared} if compared else {}),
        }


def assemble(
    settings: Settings,
    source: Source,
    decoder: EventDecoder,
    dead_letters: DeadLetterSink,
    registry: CollectorRegistry,
    *,
    store: SnapshotStore | None = None,
    snapshot: Snapshot | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Assembly:
    """Build it in one process, over a source that the caller opened and closes.

    :raises OtherSettingsError: the snapshot was made under other settings, or by a version that keeps other state.
    """
    feed = ThreadFeed()
    feed.open(settings, lambda _: nullcontext(Inputs(source, decoder, dead_letters)), registry, stop)
    metrics = LearnerMetrics(registry, settings.evaluation.detector)
    return assemble_behind(settings, feed, metrics, store=store, snapshot=snapshot)


def assemble_behind(
    settings: Settings,
    feed: Feed,
    metrics: LearnerMetrics,
    *,
    store: SnapshotStore | None = None,
    snapshot: Snapshot | None = None,
    variants: Mapping[str, Settings] | None = None,
    give_up: Callable[[], None] = lambda: None,
    allow_new_tasks: bool = False,
) -> Assembly:
    """Build the learner behind a feed that is open, both from a snapshot if there is one.

    :param variants: settings by name of learners to compare on the same stream.
    :param give_up: makes the feed's stream end; called when snapshots can no longer be published here.
    :param allow_new_tasks: the snapshot may be of fewer tasks and fields.
    :raises OtherSettingsError: the snapshot was made under other settings, or by a version that keeps other state.
    """
    use_threads(settings)
    layout = FeatureSchema.of(settings).layout
    trainer = Trainer(settings, layout)
    if snapshot is not None:
        if allow_new_tasks:
            snapshot = take_up(snapshot, settings, trainer)
        check_snapshot(snapshot, settings, layout)
        try:
            # Two processes have two memories: the ingest is sent its own part only.
            ingests = {name: snapshot.groups[name] for name in INGEST_GROUPS}
            feed.restore(ingests, snapshot.states[INGEST])
            trainer.restore(snapshot.groups, snapshot.states[LEARNER])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise OtherSettingsError(
                f"Snapshot v{snapshot.manifest.version:08d}, of library version {snapshot.manifest.library}, does not "
                f"hold the state that this version goes on from ({error!r}). Use that version, or give "
                "`snapshot.directory` a new, empty folder to start afresh."
            ) from error
    comparison = Comparison(settings, layout, variants) if variants else None
    # Beside a model that is kept; `evaluate` has its own comparison.
    pair = MultiTaskGain(settings, layout) if store is not None and settings.evaluation.shadow_share else None
    loop = LearnerLoop(settings, trainer, metrics, store, feed.commit, give_up=give_up, pair=pair)
    return Assembly(feed, trainer, loop, comparison)
