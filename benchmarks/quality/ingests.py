"""What several ingests for one learner would cost: each knows only what its own users did (ADR 22).

The simulated shop's log, its users shared out among N ingests with profiles of their own; one learner takes their
batches in turns. Normalised entropy over the last half; one ingest is what `learn` runs.

python -m benchmarks.quality.ingests
"""

import argparse
import copy
import math
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xxhash
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from benchmarks.figures import say
from benchmarks.pipeline import write_log
from benchmarks.workloads import quiet_shop_events, quiet_shop_settings
from contracts.batch import Batch
from contracts.settings import Settings
from features.schema import FeatureSchema
from learner.trainer import Trainer
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.sources.file import FileSource

INGESTS = (1, 2, 4)


class Share:
    """One ingest's batches, each with the event time it stands at, and what waits for labels at the end.

    :param number: of the ingest among ``n_ingests``: their slots are kept apart.
    """

    def __init__(self, settings: Settings, path: Path, number: int, n_ingests: int) -> None:
        self._number, self._n_ingests = number, n_ingests
        self.batches: list[tuple[int, Batch]] = []
        at_ms = 0
        with FileSource(path) as source:
            decoder = EventDecoder(settings, None, lambda: 1 << 52)
            metrics = StreamMetrics(CollectorRegistry())
            ingest = Ingest(settings.unsaved(), source, decoder, MemoryDeadLetters(), metrics)
            for piece in ingest.stream():
                if isinstance(piece, Batch):
                    at_ms = max(at_ms, piece.first_event_ms)  # -1 where a batch brings labels alone
                    self.batches.append((at_ms, self._own(piece)))
            self.rest = self._own(ingest.close_open_windows())

    def _own(self, batch: Batch) -> Batch:
        batch = copy.deepcopy(batch)  # its arrays are borrowed
        slot = np.where(batch.slot >= 0, batch.slot * self._n_ingests + self._number, -1)
        return replace(batch, slot=slot, matured_slot=batch.matured_slot * self._n_ingests + self._number)


def measured(settings: Settings, n_events: int, seed: int, n_ingests: int) -> dict[str, float]:
    """NE per task, last half."""
    trainer = Trainer(settings, FeatureSchema.of(settings).layout)
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        events = list(quiet_shop_events(n_events, seed))
        for number in range(n_ingests):
            path = Path(folder) / f"{number}.jsonl"
            own = (one for one in events if xxhash.xxh64_intdigest(str(one.user_id).encode()) % n_ingests == number)
            write_log(path, own)
            shares.append(Share(settings, path, number, n_ingests))
    made = [timed for share in shares for timed in share.batches]
    for _, batch in sorted(made, key=lambda timed: timed[0]):
        trainer.step(batch)
    for share in shares:
        trainer.measure(share.rest)
    trainer.quality.finish()
    # Not a number: too few events for a positive.
    return {task: found["last_half"]["ne"] or math.nan for task, found in trainer.quality.report().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="What several ingests with profiles of their own would cost.")
    parser.add_argument("--events", type=int, default=100_000, help="%(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="%(default)s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = quiet_shop_settings()
    found: dict[int, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for n_ingests in INGESTS:
            say(f"seed {seed}: {n_ingests} ingests")
            found.setdefault(n_ingests, []).append(measured(settings, options.events, seed, n_ingests))
    tasks = list(found[1][0])
    table = Table("ingests", *tasks, title="Normalised entropy, last half; mean (min, max) of the seeds")
    for n_ingests, runs in found.items():
        table.add_row(str(n_ingests), *(_spread([run[task] for run in runs]) for task in tasks))
    Console(width=100, highlight=False).print(table)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ({min(values):.4f}, {max(values):.4f})"


if __name__ == "__main__":
    main()
