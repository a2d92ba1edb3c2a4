"""`evaluate` on a file, without ranking: a log into weights and metrics, in one process and in two; and unmeasured.

python -m benchmarks.bench_evaluate [--events 3000000] [--runs 5]
"""

import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

from benchmarks.figures import RUNS, Figure, arguments, in_turn, say, shares, show
from benchmarks.pipeline import Run, evaluate, write_log
from benchmarks.workloads import shop_events, shop_settings
from contracts.settings import Settings
from learner.trainer import Trainer

_EVENTS = 300_000


def _title(n_events: int) -> str:
    return f"evaluate --ranking 0: {n_events:,} events of a busy shop (2,000 a second), start-up not counted"


TITLE = _title(_EVENTS)


def figures(n_events: int = _EVENTS, runs: int = RUNS) -> list[Figure]:
    """Log → weights in one and two processes; and in one without measuring quality, which no setting turns off."""
    settings = shop_settings()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "shop.jsonl"
        say("  making events")
        write_log(path, shop_events(n_events))
        jobs = {
            f"log → weights and metrics, {name}": partial(
                evaluate, path, settings.model_copy(update={"processes": processes})
            )
            for name, processes in (("two processes", 2), ("one process", 1))
        }
        measured, unmeasured = "log → weights and metrics, one process", "log → weights, one process, nothing measured"
        jobs[unmeasured] = partial(_unmeasured, path, settings.model_copy(update={"processes": 1}))
        found = {name: [run.events_per_second for run in results] for name, results in in_turn(jobs, runs).items()}
    made = [Figure(name, rates, "events/s") for name, rates in found.items()]
    return [*made, *shares(found, measured, {"with metrics, of the rate without, by pair": unmeasured})]


def _unmeasured(path: Path, settings: Settings) -> Run:
    with mock.patch.object(Trainer, "_measure"):
        return evaluate(path, settings)


if __name__ == "__main__":
    options = arguments(_title(_EVENTS), _EVENTS)
    show({_title(options.events): figures(options.events, options.runs)})
