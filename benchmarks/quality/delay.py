"""What each way to learn late labels costs: half of the simulated shop's purchases come after the wait.

One stream per seed, read by the ingest as each `delay` says. Every way is measured alike: normalised entropy of the
purchase's final label, by the score of its exposure, over the last half of the windows that closed; calibration as
Σ predicted / Σ true probability. The gap is from dropping what comes late to an oracle that knows every label at the
exposure.

python -m benchmarks.quality.delay
"""

import argparse
import copy
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from benchmarks.figures import say
from benchmarks.pipeline import write_log
from contracts.batch import Batch, Float32s
from contracts.settings import HOUR, MINUTE, Settings
from features.schema import FeatureSchema
from learner.trainer import Trainer
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.simulator import ShopSimulator, SimulatorSettings
from streamer.sources.file import FileSource

_TASK = "purchase"
_WAIT = "8m"
"""About the median of the shop's delays from exposure to purchase."""


def settings_of(delay: str, *, calibration: bool = False) -> Settings:
    """One task, so that nothing but its delay differs."""
    return Settings.model_validate(
        {
            "tasks": [{"name": _TASK, "window": "2h", "delay": delay, "wait": _WAIT}],
            "events": {"ignore": ["click"]},
            "train": {"calibration": calibration},
            "fields": [{"source": "item.category"}, {"source": "user.country"}, {"source": "context.device"}],
        }
    )


def shop(seed: int, n_events: int) -> ShopSimulator:
    """A small shop, whose purchases are frequent enough to measure by."""
    return ShopSimulator(
        SimulatorSettings(
            seed=seed,
            events=n_events,
            rate=3.0,
            n_users=2000,
            n_items=1000,
            click_rate=0.12,
            purchase_rate=0.4,
            click_window_ms=30 * MINUTE,
            purchase_window_ms=2 * HOUR,
        )
    )


def ingested(path: Path, settings: Settings) -> tuple[list[Batch], Batch]:
    """A log's batches, and what is left when it has ended."""
    with FileSource(path) as source:
        decoder = EventDecoder(settings, None, lambda: 1 << 52)
        ingest = Ingest(settings, source, decoder, MemoryDeadLetters(), StreamMetrics(CollectorRegistry()))
        # A batch's arrays are borrowed from the ingest: only a copy outlives the next one.
        batches = [copy.deepcopy(cut) for cut in ingest.stream() if isinstance(cut, Batch)]
        return batches, ingest.close_open_windows()


class Stream:
    """:param path: the log; ``delay``: how the ingest hands on its labels."""

    def __init__(self, path: Path, delay: str) -> None:
        self.settings = settings_of(delay)
        self.batches, self.last = ingested(path, self.settings)


def final_labels(stream: Stream) -> list[Float32s]:
    """Of each batch's rows the label as it will be, shape ``[B, 1]``."""
    labels = [np.zeros(batch.labels.shape, np.float32) for batch in stream.batches]
    where: dict[int, tuple[int, int]] = {}
    for place, batch in enumerate([*stream.batches, stream.last]):
        where |= {slot: (place, row) for row, slot in enumerate(batch.slot.tolist()) if slot >= 0}
        for slot, label in zip(batch.matured_slot.tolist(), batch.matured_labels[:, 0].tolist(), strict=True):
            at, row = where[slot]
            labels[at][row] = label
    return labels


def ways(path: Path) -> Iterator[tuple[str, Settings, list[Batch]]]:
    """Name, settings and batches."""
    wait, head, at_once = (Stream(path, delay) for delay in ("wait", "delay_head", "fnc_in_loss"))
    nothing = [np.zeros_like(batch.matured_learn) for batch in wait.batches]
    yield (
        "oracle: every label at once",
        wait.settings,
        [
            replace(batch, labels=labels, learn=(batch.slot >= 0)[:, None], matured_learn=none)
            for batch, labels, none in zip(wait.batches, final_labels(wait), nothing, strict=True)
        ],
    )
    # Read with a wait, learned by a loss that knows nothing of it.
    early = [replace(batch, matured_learn=batch.matured_learn & ~batch.matured_late) for batch in head.batches]
    yield "late positives dropped", wait.settings, early
    yield "late positives learned, loss unaware", wait.settings, head.batches
    yield "wait (the whole window)", wait.settings, wait.batches
    for name, stream in (("fnc_in_loss", at_once), (f"delay_head, wait {_WAIT}", head)):
        yield name, stream.settings, stream.batches
        calibrated = settings_of(stream.settings.tasks[0].delay, calibration=True)
        yield f"{name}, calibrated online", calibrated, stream.batches
    yield f"es_dfm, wait {_WAIT}", settings_of("es_dfm"), head.batches


def measured(settings: Settings, batches: list[Batch]) -> tuple[float, float]:
    """Normalised entropy and calibration over the windows that closed: what is open yet has labels to come."""
    trainer = Trainer(settings, FeatureSchema.of(settings).layout)
    for batch in batches:
        trainer.step(batch)
    report = trainer.quality.report()[_TASK]
    found, truth = report["last_half"], report["oracle"]["last_half"]
    return found["ne"], found["calibration"] / truth["calibration"]


def late_share(batches: list[Batch]) -> float:
    """Of the positives."""
    positives = sum(int((batch.matured_learn & (batch.matured_labels > 0)).sum()) for batch in batches)
    return sum(int(batch.matured_late.sum()) for batch in batches) / positives


def main() -> None:
    parser = argparse.ArgumentParser(description="Ways to learn late labels, on the simulated shop.")
    parser.add_argument("--events", type=int, default=100_000, help="%(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="%(default)s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, float]]] = {}
    shares = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "log.jsonl"
            write_log(path, shop(seed, options.events).events())
            for name, settings, batches in ways(path):
                say(f"seed {seed}: {name}")
                found.setdefault(name, []).append(measured(settings, batches))
        shares.append(late_share(batches))
    table = Table(title=f"Late labels: {statistics.mean(shares):.0%} of purchases after the wait; mean (min, max)")
    for column in ("way", "NE, last half", "predicted / true", "gap closed"):
        table.add_column(column)
    names = list(found)
    for name, runs in found.items():
        closed = [
            (dropped - ne) / (dropped - best)
            for (ne, _), (best, _), (dropped, _) in zip(runs, found[names[0]], found[names[1]], strict=True)
        ]
        ne, calibration = zip(*runs, strict=True)
        table.add_row(name, *(_spread(values) for values in (ne, calibration, closed)))
    Console(width=120).print(table)


def _spread(values: tuple[float, ...] | list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f}, {max(values):.3f})"


if __name__ == "__main__":
    main()
