"""Events a second and quality, ours and its rivals', on the same events of the simulated shop.

    python -m benchmarks.bench_rivals [--events 100000] [--runs 5]

Rivals get joined examples (`peers/joined.py`): they neither decode nor join, and know every outcome at its exposure.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.figures import RUNS, Figure, arguments, in_turn, say, show
from benchmarks.peers import vowpal_wabbit
from benchmarks.peers._result import Result, Rival
from benchmarks.peers.joined import Joined
from benchmarks.peers.ready_batches import ReadyBatches, ReadyExamples
from benchmarks.peers.river_linear import River
from benchmarks.peers.torch_loop import TorchLoop
from benchmarks.peers.vowpal_wabbit import LOW_RANK, QUADRATIC, VowpalWabbit
from benchmarks.pipeline import Run, evaluate, write_log
from benchmarks.workloads import quiet_shop_events, quiet_shop_settings

_EVENTS = 100_000
_EASIER = (
    "Rivals, and our learner alone, get examples that are decoded and joined already; rivals know every outcome at its "
    "exposure already. Those with our features see what our model sees, computed before the clock starts. River and "
    "Vowpal Wabbit: three single-task processes at once, on both cores."
)


def _title(n_events: int) -> str:
    return f"Rivals: {n_events:,} events of a quiet shop (20 a second, batches of 1,024 rows)"


TITLE = _title(_EVENTS)


def figures(n_events: int = _EVENTS, runs: int = RUNS) -> list[Figure]:
    """All in turn; each is given both cores, and uses what it can."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        path = folder / "shop.jsonl"
        say("  making events, and the joined examples of them")
        write_log(path, quiet_shop_events(n_events))
        settings = quiet_shop_settings()
        joined = Joined.of(path, settings)
        jobs: dict[str, Callable[[], Run | Result]] = {
            f"Anabranch, log → weights and metrics, {name}": partial(
                evaluate, path, settings.model_copy(update={"processes": processes})
            )
            for name, processes in (("two processes", 2), ("one process", 1))
        }
        jobs |= {rival.name: rival.run for rival in _rivals(path, folder, joined)}
        found = in_turn(jobs, runs)
    made = [
        Figure(name, [result.events_per_second for result in results], "events/s", ne=results[-1].ne, note=_EASIER)
        for name, results in found.items()
    ]
    if missing := vowpal_wabbit.why_not():
        made.append(Figure("Vowpal Wabbit", [], "events/s", note=missing))
    return made


def _rivals(path: Path, folder: Path, joined: Joined) -> list[Rival]:
    both, inputs = joined.with_behaviour(), ", our features"
    settings = quiet_shop_settings()
    ours: list[Rival] = [ReadyBatches(path, settings), ReadyExamples(joined, path, settings)]
    made = [*ours, River(joined), River(both, inputs)]
    if not vowpal_wabbit.why_not():
        made += [
            *(VowpalWabbit(joined, folder / "ids", flags) for flags in (QUADRATIC, LOW_RANK)),
            *(VowpalWabbit(both, folder / "features", flags, inputs) for flags in (QUADRATIC, LOW_RANK)),
        ]
    return [*made, TorchLoop(joined, 1), TorchLoop(joined, 2)]


if __name__ == "__main__":
    options = arguments(_title(_EVENTS), _EVENTS)
    show({_title(options.events): figures(options.events, options.runs)})
