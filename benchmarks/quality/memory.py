"""Whether millions of ids that come once leave memory flat, and what is known of the frequent ones unharmed.

The simulated shop's views and clicks, and after each of them views by users of items that never come again. Embedding
table and profiles get a cap together, and each new id a row at once, so that the cap is reached early and kept by
eviction alone; beside it a run whose parts hold everything. Each run is a process of its own.

Quality is that of the shop's own views: the cross-entropy of the simulator's true click probability and the predicted
one, as served before learning it, over that of the mean; last half. 1 is the base rate, the truth itself is below.
Frequent are views by the fifth of users that view most.

python -m benchmarks.quality.memory
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from benchmarks.figures import say
from benchmarks.pipeline import write_log
from contracts.batch import Batch, Rows
from contracts.events import Event
from contracts.memory import MIB, plan
from contracts.settings import Settings
from features.schema import FeatureSchema
from learner.trainer import Trainer
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.simulator import ShopSimulator, SimulatorSettings
from streamer.sources.file import FileSource

CAP_MIB = 256.0
N_IDS = 5_000_000
_STRANGERS = 5
"""Views of ids that never come again, after each event of the shop."""
_LOOKS = 10
_CLICK = "click"


class Found(msgspec.Struct):
    """What a run saw, at its ten looks and over its last half."""

    resident_mib: list[float]
    rows: int
    all_views: tuple[float, float]
    """Of the predictions, and of the truth itself."""
    frequent: tuple[float, float]


def log(n_ids: int, seed: int) -> Iterator[Event]:
    """The shop, and strangers until so many ids have come."""
    n_shop = n_ids // (2 * _STRANGERS)
    shop = SimulatorSettings(
        seed=seed, events=n_shop, rate=50.0, n_users=2000, n_items=1000, click_rate=0.12, new_users=0
    )
    for n, event in enumerate(ShopSimulator(shop).events()):
        yield event
        for stranger in range(n * _STRANGERS, (n + 1) * _STRANGERS):
            name = f"once-{stranger:x}"
            yield Event(
                event_id=name,
                type="content_view",
                user_id=name,
                item_id=name,
                ts_ms=event.ts_ms,
                item={"category": f"c{stranger % 40}"},
                user={"country": f"k{stranger % 20}"},
            )


def settings_of(n_ids: int, cap_mib: float) -> Settings:
    """:param cap_mib: of embedding table and profiles together; 0: they hold everything."""
    basis = {
        "tasks": [{"name": _CLICK, "window": "10m"}],
        "fields": [{"source": "item.category"}, {"source": "user.country"}, {"source": "context.device"}],
        "events": {"max_open": 250_000, "deduplicate": "1m", "deduplicate_max": 100_000, "ignore": ["purchase"]},
        "embedding": {"admit_after": 1},
    }
    if cap_mib:
        others = [one.n_bytes for one in plan(Settings.model_validate(basis)) if one.part.setting.startswith("events")]
        return Settings.model_validate({**basis, "memory": {"max_mib": cap_mib + sum(others) / MIB}})
    everything = {"users": n_ids, "items": n_ids, "pairs": 4 * n_ids, "values": 4 * n_ids}
    return Settings.model_validate(
        {**basis, "features": everything, "embedding": {"admit_after": 1, "max_mib": 64 + n_ids * 150 / MIB}}
    )


def run(path: Path, n_ids: int, cap_mib: float) -> Found:
    """One pass over the log."""
    settings = settings_of(n_ids, cap_mib)
    n_all = n_ids // (2 * _STRANGERS) * (1 + _STRANGERS)
    trainer = Trainer(settings, FeatureSchema.of(settings).layout)
    resident, truths, scores, users, n_events, now_mib = [], [], [], [], 0, 0.0
    with FileSource(path) as source:
        decoder = EventDecoder(settings, None, lambda: 1 << 52)
        ingest = Ingest(settings.unsaved(), source, decoder, MemoryDeadLetters(), StreamMetrics(CollectorRegistry()))
        for piece in ingest.stream():
            if not isinstance(piece, Batch):
                continue
            n_events += piece.n_events
            if n_events > n_all // 2 and piece.truth is not None:
                of_shop = np.flatnonzero(~np.isnan(piece.truth[:, 0]))
                scores.append(trainer.logits(_at(piece.rows, of_shop))[:, 0])
                truths.append(piece.truth[of_shop, 0])
                users.append(piece.rows.ids[of_shop, 0])
            trainer.step(piece)
            now_mib = _resident_mib()
            if n_events * _LOOKS >= (len(resident) + 1) * n_all and len(resident) < _LOOKS - 1:
                resident.append(now_mib)
    truth, logits = np.concatenate(truths).astype(np.float64), np.concatenate(scores).astype(np.float64)
    _, of_user, n_views = np.unique(np.concatenate(users), return_inverse=True, return_counts=True)
    frequent = (n_views >= np.quantile(n_views, 0.8))[of_user]
    return Found(
        [*resident, now_mib],
        trainer.table.n_rows,
        _normalised(truth, logits),
        _normalised(truth[frequent], logits[frequent]),
    )


def _at(rows: Rows, places: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Rows:
    return replace(
        rows, ids=rows.ids[places], history=rows.history[places], dense=rows.dense[places], log_q=rows.log_q[places]
    )


def _normalised(truth: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """Cross-entropy of the predictions, and of the truth, over that of the mean."""
    base = _entropy(truth, np.full_like(truth, np.log(truth.mean() / (1 - truth.mean()))))
    return _entropy(truth, logits) / base, _entropy(truth, np.log(truth / (1 - truth))) / base


def _entropy(truth: np.ndarray, logits: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, logits) - truth * logits))


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / MIB


def apart(path: Path, n_ids: int, cap_mib: float) -> Found:
    """:func:`run` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.quality.memory", "--one", str(path)]
    done = subprocess.run([*command, "--ids", str(n_ids), "--cap", str(cap_mib)], check=True, stdout=subprocess.PIPE)
    return msgspec.json.decode(done.stdout, type=Found)


def tables(found: dict[str, Found], n_ids: int) -> list[Table]:
    """Resident memory over the run; quality at its end."""
    memory = Table("ids so far", *found, title="Resident memory of the process, MiB", title_justify="left")
    for look in range(_LOOKS):
        memory.add_row(
            f"{n_ids * (look + 1) // _LOOKS:,}", *(f"{one.resident_mib[look]:,.0f}" for one in found.values())
        )
    quality = Table("", *found, title="The shop's own views, last half", title_justify="left")
    quality.add_row("embedding rows at the end", *(f"{one.rows:,}" for one in found.values()))
    for what in ("all_views", "frequent"):
        name, truth = what.replace("_", " "), [getattr(one, what)[1] for one in found.values()]
        quality.add_row(f"{name}: NE of P(click)", *(f"{getattr(one, what)[0]:.4f}" for one in found.values()))
        quality.add_row(f"{name}: of the true probability", *(f"{value:.4f}" for value in truth))
    return [memory, quality]


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and quality under millions of ids that come once.")
    parser.add_argument("--ids", type=int, default=N_IDS, help="distinct ids (%(default)s)")
    parser.add_argument("--cap", type=float, default=CAP_MIB, help="MiB of embeddings and profiles (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="%(default)s")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(1)
        sys.stdout.buffer.write(msgspec.json.encode(run(options.one, options.ids, options.cap)))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        say("making the log")
        write_log(path, log(options.ids, options.seed))
        for name, cap_mib in ((f"capped at {options.cap:g} MiB", options.cap), ("not capped", 0.0)):
            say(name)
            found[name] = apart(path, options.ids, cap_mib)
    console = Console(width=100, highlight=False)
    for table in tables(found, options.ids):
        console.print(table)


if __name__ == "__main__":
    main()
