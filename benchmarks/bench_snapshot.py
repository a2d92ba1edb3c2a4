"""What snapshots and deltas cost the learner: how long it stands still at a million rows, and the rate meanwhile.

python -m benchmarks.bench_snapshot
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.figures import RUNS, Figure, in_turn, show
from benchmarks.workloads import random_batches, ten_field_settings
from contracts.batch import Barrier, Batch, Int64s, Rows
from contracts.settings import Settings
from features.schema import FeatureSchema
from learner.loop import LearnerLoop
from learner.metrics import LearnerMetrics
from learner.snapshot import SnapshotStore
from learner.trainer import Trainer, use_threads

TITLE = "Snapshots: 1 million embedding rows of width 16 and their optimiser state"

_N_ROWS = 1_000_000
_N_FEW = 40_000
_CHUNK = 20_000
_BATCHES, _BATCH_ROWS = 400, 512


def _filled(settings: Settings) -> Trainer:
    """A trainer whose table holds a million rows."""
    trainer = Trainer(settings, FeatureSchema.of(settings).layout)
    touch(trainer, np.arange(1, _N_ROWS - trainer.table.n_rows + 1))
    return trainer


def touch(trainer: Trainer, ids: Int64s) -> None:
    """Look these ids up as seen, so that each has a row and the row has changed."""
    n_fields, n_types = len(trainer.layout.fields), len(trainer.layout.event_types)
    for start in range(0, len(ids), _CHUNK):
        chunk = np.resize(ids[start : start + _CHUNK], (-(-len(ids[start : start + _CHUNK]) // n_fields), n_fields))
        n = len(chunk)
        history = np.zeros((n, n_types, trainer.layout.history_length), np.int64)
        trainer.table.rows(
            Rows(chunk, history, np.zeros((n, 0), np.float32), np.zeros(n, np.float32)), np.ones(n, np.bool_)
        )


def _pauses(trainer: Trainer, ids: Int64s) -> list[float]:
    """Milliseconds of :meth:`Trainer.capture` after these ids' rows changed; the first one, which allocates, apart."""
    found = []
    for _ in range(RUNS + 1):
        touch(trainer, ids)
        started = time.perf_counter()
        trainer.capture()
        found.append((time.perf_counter() - started) * 1000)
    return found[1:]


def _delta_writes(trainer: Trainer, ids: Int64s, directory: Path) -> list[float]:
    """Milliseconds to put together, hash and write a delta of these ids' rows."""
    found = []
    with SnapshotStore(directory) as store:
        newest = store.publish(
            {}, {}, created_ms=0, event_time_ms=0, n_events=0, offsets={}, settings_fingerprint="", tasks=()
        )
        for _ in range(RUNS + 1):
            touch(trainer, ids)
            finish = trainer.capture_delta()
            started = time.perf_counter()
            newest = store.publish_delta(newest, finish(), created_ms=0, event_time_ms=0)
            found.append((time.perf_counter() - started) * 1000)
    return found[1:]


class _Learning:
    """A loop over a million rows: nothing written, a snapshot all the time, or one at first and a delta each second."""

    def __init__(self, settings: Settings, trainer: Trainer, directory: Path) -> None:
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
        if delta_seconds and not registry.get_sample_value("anabranch_delta_seconds_count"):
            raise RuntimeError("No delta was written: the rate would be that of learning alone.")
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
                yield Barrier({}, {}, {}, 1, 1, written.set, is_delta=True)
            yield batch
        seconds.append(time.perf_counter() - started)


def figures() -> list[Figure]:
    """The pause, the times to write, and the rate of learning meanwhile."""
    settings = ten_field_settings(embedding={"admit_after": 1})
    use_threads(settings)
    trainer = _filled(settings)
    every = np.arange(1, _N_ROWS - len(trainer.layout.fields) + 1)
    few = np.random.default_rng(0).permutation(every)[:_N_FEW]
    made = [
        Figure("learning stands still, every row changed", _pauses(trainer, every), "ms", 1),
        Figure(f"learning stands still, {_N_FEW:,} rows changed", _pauses(trainer, few), "ms", 1),
    ]
    with tempfile.TemporaryDirectory() as directory:
        learning = _Learning(settings, trainer, Path(directory))
        rates = in_turn(
            {
                "nothing": learning.rate,
                "deltas": lambda: learning.rate(delta_seconds=1.0),
                "snapshots": lambda: learning.rate(saving=True),
            }
        )
        made += [
            Figure(
                f"a delta of {_N_FEW:,} rows written, meanwhile",
                _delta_writes(trainer, few, Path(directory, "d")),
                "ms",
                1,
            ),
            Figure("a snapshot written and published, meanwhile", learning.write_seconds[1:], "s", 2),
            Figure(f"learning, batches of {_BATCH_ROWS}, nothing written", rates["nothing"], "examples/s"),
            Figure(f"learning, batches of {_BATCH_ROWS}, a delta each second", rates["deltas"], "examples/s"),
            Figure(
                f"learning, batches of {_BATCH_ROWS}, one snapshot after the other", rates["snapshots"], "examples/s"
            ),
        ]
    return made


if __name__ == "__main__":
    show({TITLE: figures()})
