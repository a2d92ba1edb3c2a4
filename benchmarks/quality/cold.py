"""New items, by their first exposures: what does content tell before anyone has clicked? On the simulated shop.

python -m benchmarks.quality.cold [--seeds 3] [--events 300000]

A simulation: items enter the catalogue all the time (20 per 1,000 exposures). Of those that enter in the second half of
the log, the click on the first exposure, and on the second to fifth, is scored by the model of that moment. The prior
is the running share of clicks. Both models see the same users, sessions and behaviour; one sees an item's category,
brand and price beside its id, the other its id alone. Beside new items, users that were never seen before. NE is
normalised by these very exposures: 1 is a constant that knows their rate.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import say
from benchmarks.pipeline import write_log
from benchmarks.quality.delay import ingested
from benchmarks.workloads import shop_settings
from contracts.batch import Float32s, Int64s
from contracts.events import Event
from contracts.settings import DAY, Settings
from features.schema import FeatureSchema
from learner.prequential import TaskQuality, summary
from learner.trainer import Trainer
from streamer.simulator import ShopSimulator, SimulatorSettings

_TASK = "click"
_NEW_ITEMS = 20.0
_FIRST = 5
_WARM = 20
"""Exposures behind which an item counts as known, for comparison."""


class Exposures(NamedTuple):
    """The N exposures of a log, in its order."""

    ordinal: Int64s
    """Which exposure of its item it is, from 1 on."""
    is_new: NDArray[np.bool_]
    """Its item entered in the second half of the log."""
    is_first_request: NDArray[np.bool_]
    """Its user was never seen before."""
    clicked: Float32s
    truth: Float32s
    """The shop's own probability."""


def exposures_of(events: list[Event]) -> Exposures:
    """What the log tells afterwards."""
    shown = [event for event in events if event.type == "content_view"]
    clicked = {(event.request_id, event.item_id) for event in events if event.type == _TASK}
    times: dict[str | int, int] = {}
    entered: dict[str | int, int] = {}
    first_request: dict[str | int, str | None] = {}
    ordinals = []
    for place, event in enumerate(shown):
        times[event.item_id] = times.get(event.item_id, 0) + 1
        entered.setdefault(event.item_id, place)
        first_request.setdefault(event.user_id, event.request_id)
        ordinals.append(times[event.item_id])
    return Exposures(
        ordinal=np.array(ordinals),
        is_new=np.array([entered[event.item_id] >= len(shown) // 2 for event in shown]),
        is_first_request=np.array([first_request[event.user_id] == event.request_id for event in shown]),
        clicked=np.array([(event.request_id, event.item_id) in clicked for event in shown], np.float32),
        truth=np.array([(event.truth or {})[_TASK] for event in shown], np.float32),
    )


def without_content(settings: Settings) -> Settings:
    """The same, but that nothing is known of an item besides its id."""
    return settings.model_copy(update={"fields": tuple(one for one in settings.fields if one.owner != "item")})


def scored(path: Path, settings: Settings) -> tuple[Float32s, Float32s]:
    """The logit of a click at each exposure, before anything of its batch is learned; and that of the prior."""
    trainer = Trainer(settings, FeatureSchema.of(settings).layout)
    task = trainer.layout.tasks.index(_TASK)
    logits, priors = [], []
    for batch in ingested(path, settings)[0]:
        shown = np.flatnonzero(~batch.sampled)
        logits.append(trainer.logits(batch.rows.at(shown))[:, task])
        priors.append(np.full(len(shown), trainer.base_rates.logits[task].item(), np.float32))
        trainer.step(batch)
    return np.concatenate(logits), np.concatenate(priors)


def measured(logits: Float32s, labels: Float32s) -> tuple[float, float]:
    """AUC and normalised entropy."""
    quality = TaskQuality(0.5, DAY)
    quality.update(logits, labels, 0)
    found = summary(quality.all())
    return float(found["auc"] or np.nan), float(found["ne"] or np.nan)


def run(seed: int, n_events: int) -> dict[str, dict[str, tuple[float, float]]]:
    """By way and kind of exposure: AUC and NE."""
    settings = shop_settings(batch={"span": "1m"}, seed=seed)
    events = list(
        ShopSimulator(SimulatorSettings(seed=seed, events=n_events, rate=20.0, new_items=_NEW_ITEMS)).events()
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shop.jsonl"
        write_log(path, events)
        with_content, prior = scored(path, settings)
        ids_alone, _ = scored(path, without_content(settings))
    shown = exposures_of(events)
    ways = {
        "prior": prior,
        "id alone": ids_alone,
        "id, category, brand, price": with_content,
        "the shop's own probabilities": np.log(shown.truth / (1 - shown.truth)),
    }
    late = np.arange(len(shown.ordinal)) >= len(shown.ordinal) // 2
    kinds = {
        "a new item's first": shown.is_new & (shown.ordinal == 1),
        f"a new item's second to {_FIRST}th": shown.is_new & (shown.ordinal > 1) & (shown.ordinal <= _FIRST),
        "a new user's first request": late & shown.is_first_request,
        f"behind an item's {_WARM}th": late & (shown.ordinal > _WARM),
    }
    for kind, rows in kinds.items():
        say(f"  {kind}: {rows.sum():,} exposures, {shown.clicked[rows].sum():,.0f} clicks")
    return {
        way: {kind: measured(logits[rows], shown.clicked[rows]) for kind, rows in kinds.items()}
        for way, logits in ways.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.cold",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--events", type=int, default=300_000, help="of each shop (%(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in range(given.seeds):
        say(f"seed {seed}: {given.events:,} events")
        runs.append(run(seed, given.events))
    title = f"Clicks where little is known, {given.seeds} shops of {given.events:,} events; mean (least, greatest)"
    made = Table(title=title, box=box.SIMPLE)
    for name in ("exposure", "scored by", "AUC", "NE"):
        made.add_column(name, justify="right" if name in ("AUC", "NE") else "left")
    for kind in runs[0]["prior"]:
        for place, way in enumerate(runs[0]):
            figures = zip(*(one[way][kind] for one in runs), strict=True)
            made.add_row("" if place else kind, way, *map(_spread, figures))
    Console(highlight=False, width=120).print(made)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f}, {max(values):.3f})"


if __name__ == "__main__":
    main()
