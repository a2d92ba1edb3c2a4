"""What snapshots and deltas cost: how long learning stands still at a million rows, how long writing takes, the rates.

Deltas hold profiles as those of a busy second are: what 40,000 events of the shop change. The last rates
are of both sides, log to weights, in turns with deltas and without.

python -m benchmarks.bench_snapshot [--pairs 5]
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.figures import RUNS, Figure, in_turn, shares, show
from benchmarks.pipeline import Run, evaluate, write_log
from benchmarks.workloads import random_batches, shop_events, shop_settings, ten_field_settings
from contracts.batch import Barrier, Batch, Int64s
from contracts.settings import Settings
from features.profiles import save_profiles
from features.schema import FeatureSchema
from learner.loop import LearnerLoop
from learner.metrics import LearnerMetrics
from learner.snapshot import SnapshotStore
from learner.snapshot_files import Arrays
from learner.trainer import Groups, Trainer, use_threads
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.sources.file import FileSource

TITLE = "Snapshots: 1 million embedding rows of width 16 and their optimiser state"

_N_ROWS = 1_000_000
_N_FEW = 40_000
_CHUNK = 20_000
_BATCHES, _BATCH_ROWS = 400, 512
_PIPELINE_EVENTS = 600_000
_DELTA_SECONDS = {"no deltas": 0.0, "a delta each second": 1.0}


def _filled(settings: Settings) -> Trainer:
    """A trainer whose table holds a million rows."""
    trainer = Trainer(settings, FeatureSchema.of(settings).layout)
    touch(trainer, np.arange(1, _N_ROWS - trainer.table.n_rows + 1))
    return trainer


def touch(trainer: Trainer, ids: Int64s) -> None:
    """Look these ids up as seen, so that each has a row and the row has changed."""
    n_fields = len(trainer.layout.fields)
    for start in range(0, len(ids), _CHUNK):
        chunk = np.resize(ids[start : start + _CHUNK], (-(-len(ids[start : start + _CHUNK]) // n_fields), n_fields))
        trainer.table.see(chunk, np.ones(len(chunk), np.bool_))


def _pauses(trainer: Trainer, ids: Int64s) -> list[float]:
    """Milliseconds of :meth:`Trainer.capture` after these ids' rows changed; the first one, which allocates, apart."""
    found = []
    for _ in range(RUNS + 1):
        touch(trainer, ids)
        started = time.perf_counter()
        trainer.capture()
        found.append((time.perf_counter() - started) * 1000)
    return found[1:]


def _profiles(n_events: int) -> Arrays:
    """What so many events of the shop changed in profiles that had seen twice as many."""
    settings = shop_settings()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "shop.jsonl"
        write_log(path, shop_events(4 * n_events))
        with FileSource(path) as source:
            decoder = EventDecoder(settings, None, lambda: 1 << 52)
            metrics = StreamMetrics(CollectorRegistry())
            ingest = Ingest(settings.unsaved(), source, decoder, MemoryDeadLetters(), metrics)
            n_seen = 0
            for piece in ingest.stream():
                before, n_seen = n_seen, n_seen + (piece.n_events if isinstance(piece, Batch) else 0)
                if before < 2 * n_events <= n_seen:
                    save_profiles(ingest.profiles, changes=True)  # what changes counts from here on
                if n_seen >= 3 * n_events:
                    break  # before the last barrier, which saves everything
            return save_profiles(ingest.profiles, changes=True)


class _Times(NamedTuple):
    """Milliseconds of each run, by the wall and by the processor."""

    wall: list[float]
    processor: list[float]


def _delta_writes(trainer: Trainer, ids: Int64s, groups: Groups, directory: Path) -> _Times:
    """To put together, hash and write a delta of these ids' rows and these groups."""
    found: list[tuple[float, float]] = []
    with SnapshotStore(directory) as store:
        newest = store.publish(
            {}, {}, created_ms=0, event_time_ms=0, n_events=0, offsets={}, settings_fingerprint="", tasks=()
        )
        for _ in range(RUNS + 1):
            touch(trainer, ids)
            finish = trainer.capture_delta()
            started, used = time.perf_counter(), time.process_time()
            newest = store.publish_delta(newest, {**finish(), **groups}, created_ms=0, event_time_ms=0)
            found.append(((time.perf_counter() - started) * 1000, (time.process_time() - used) * 1000))
    wall, processor = zip(*found[1:], strict=True)
    return _Times(list(wall), list(processor))


def _learned(path: Path, delta_seconds: float) -> Run:
    """Log to weights, behind a snapshot at a third of it.

    :raises RuntimeError: no delta was written, though there should be some.
    """
    registry = CollectorRegistry()
    snapshot = {"every": "1h", "every_events": _PIPELINE_EVENTS // 3, "delta_seconds": delta_seconds}
    settings = shop_settings(snapshot=snapshot, processes=0)
    with tempfile.TemporaryDirectory() as directory, SnapshotStore(Path(directory)) as store:
        run = evaluate(path, settings, store, registry)
    _require_deltas(registry, delta_seconds)
    return run


def _require_deltas(registry: CollectorRegistry, delta_seconds: float) -> None:
    if delta_seconds and not registry.get_sample_value("anabranch_delta_seconds_count"):
        raise RuntimeError("No delta was written: the rate would be that of learning alone.")


class _Learning:
    """A loop over a million rows: nothing written, a snapshot all the time, or one at first and a delta each second."""

    def __init__(self, settings: Settings, trainer: Trainer, profiles: Groups, directory: Path) -> None:
        self._profiles = profiles
        self.write_seconds: list[float] = []
        self._settings = settings
        self._trainer = trainer
        self._batches = random_batches(settings, _BATCHES, _BATCH_ROWS)
        self._directory = directory

    def rate(self, *, saving: bool = False, delta_seconds: float = 0.0) -> float:
        """Examples a second, of the steps behind a snapshot that is written."""
        registry = CollectorRegistry()
        metrics = LearnerMetrics(registry, self._settings.evaluation.detector)
        with SnapshotStore(self._directory, 1) as store:
            loop = LearnerLoop(self._settings, self._trainer, metrics, store)
            seconds: list[float] = []
            loop.run(self._stream(seconds, saving=saving, delta_seconds=delta_seconds))
        _require_deltas(registry, delta_seconds)
        if saving:
            value = registry.get_sample_value
            n_written = value("anabranch_snapshot_seconds_count") or 1.0
            self.write_seconds.append((value("anabranch_snapshot_seconds_sum") or 0.0) / n_written)
        return _BATCHES * _BATCH_ROWS / seconds[0]

    def _stream(self, seconds: list[float], *, saving: bool, delta_seconds: float) -> Iterator[Batch | Barrier]:
        written = threading.Event()
        yield Barrier({}, {}, {}, 1, 1, written.set)
        written.wait()
        started = last = time.perf_counter()
        for batch in self._batches:
            if saving and written.is_set():
                written.clear()
                yield Barrier({}, {}, {}, 1, 1, written.set)
            elif delta_seconds and time.perf_counter() - last >= delta_seconds and written.is_set():
                written.clear()
                last = time.perf_counter()
                yield Barrier({}, self._profiles, {}, 1, 1, written.set, is_delta=True)
            yield batch
        seconds.append(time.perf_counter() - started)


def figures(pairs: int = RUNS) -> list[Figure]:
    """The pause, the times to write, and the rates meanwhile.

    :param pairs: runs of the whole pipeline with deltas, and as many without.
    """
    settings = ten_field_settings(embedding={"admit_after": 1})
    use_threads(settings)
    trainer = _filled(settings)
    profiles = {"profiles": _profiles(_N_FEW)}
    every = np.arange(1, _N_ROWS - len(trainer.layout.fields) + 1)
    few = np.random.default_rng(0).permutation(every)[:_N_FEW]
    made = [
        Figure("learning stands still, every row changed", _pauses(trainer, every), "ms", 1),
        Figure(f"learning stands still, {_N_FEW:,} rows changed", _pauses(trainer, few), "ms", 1),
    ]
    with tempfile.TemporaryDirectory() as directory:
        learning = _Learning(settings, trainer, profiles, Path(directory))
        rates = in_turn(
            {
                "nothing": learning.rate,
                "deltas": lambda: learning.rate(delta_seconds=1.0),
                "snapshots": lambda: learning.rate(saving=True),
            }
        )
        rows_alone = _delta_writes(trainer, few, {}, Path(directory, "d"))
        whole = _delta_writes(trainer, few, profiles, Path(directory, "e"))
        n_mb = sum(array.nbytes for array in profiles["profiles"].values()) / 1e6
        made += [
            Figure(f"a delta of {_N_FEW:,} rows written, without profiles", rows_alone.wall, "ms", 1),
            Figure(f"the same with the profiles that {_N_FEW:,} events changed, {n_mb:.1f} MB", whole.wall, "ms", 1),
            Figure("the same, processor time", whole.processor, "ms", 1),
            Figure("a snapshot written and published, meanwhile", learning.write_seconds[1:], "s", 2),
            Figure(f"learning, batches of {_BATCH_ROWS}, nothing written", rates["nothing"], "examples/s"),
            Figure(f"learning, batches of {_BATCH_ROWS}, a delta each second", rates["deltas"], "examples/s"),
            Figure(
                f"learning, batches of {_BATCH_ROWS}, one snapshot after the other", rates["snapshots"], "examples/s"
            ),
        ]
    return made + _pipeline_figures(pairs)


def _pipeline_figures(pairs: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "shop.jsonl"
        write_log(path, shop_events(_PIPELINE_EVENTS))
        found = in_turn({name: partial(_learned, path, seconds) for name, seconds in _DELTA_SECONDS.items()}, pairs)
    made = []
    for what, unit, digits in (("events_per_second", "events/s", 0), ("cpu_us_per_event", "µs of processor/event", 2)):
        values = {name: [getattr(run, what) for run in runs] for name, runs in found.items()}
        made += [Figure(f"log → weights, {name}", values[name], unit, digits) for name in values]
        without, with_deltas = values
        made += shares(values, with_deltas, {"with them, of that without, by pair": without})
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--pairs", type=int, default=RUNS, help="of whole runs with deltas and without (%(default)s)")
    show({TITLE: figures(parser.parse_args().pairs)})
