"""Whether rate and memory stand still while a log grows, in events and in distinct ids.

    python -m benchmarks.bench_scaling [--long] [--plot docs/scaling.svg]

Each run is a process of its own, so that its memory is its own too. `--long` goes to ten million events and ids: these
points run once, the others three times, some twenty minutes in all.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.figures import RUNS, Figure, in_turn, say, show
from benchmarks.pipeline import Run, evaluate
from benchmarks.zipf_log import write_zipf_log, zipf_settings


@dataclass(frozen=True)
class Point:
    """A log of so many events over so many ids."""

    n_events: int
    n_ids: int

    @property
    def name(self) -> str:
        return f"{self.n_events:,} events, {self.n_ids:,} ids"


_EVENTS_OVER_IDS = 1_000_000
SHORT = (Point(100_000, 10_000), *(Point(_EVENTS_OVER_IDS, n_ids) for n_ids in (10_000, 100_000, 1_000_000)))
_LONG_RUNS = 3
LONG = (*SHORT, Point(10_000_000, 10_000), Point(10_000_000, 10_000_000))
TITLE = "Scaling: log → weights and metrics, ids by Zipf's law"


def figures(points: Sequence[Point] = SHORT, runs: int = RUNS) -> list[Figure]:
    """Rate and peak memory of each point.

    :param runs: of a point, after one to warm up; a point of more than a million events runs once, without.
    """
    return _figures(_measure(points, runs))


def _measure(points: Sequence[Point], runs: int) -> dict[Point, list[Run]]:
    found: dict[Point, list[Run]] = {}
    # One log on the disk at a time: the longest is 3 GB.
    for point in points:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "zipf.jsonl"
            say(f"  making {point.name}")
            n_distinct = write_zipf_log(path, point.n_events, point.n_ids)
            if n_distinct < point.n_ids:
                say(f"  only {n_distinct:,} ids came: too few events for all")
            if point.n_events > _EVENTS_OVER_IDS:
                say(f"  one run: {point.name}")
                found[point] = [_run(path)]
            else:
                found |= {point: in_turn({point.name: partial(_run, path)}, runs)[point.name]}
    return found


def _figures(found: dict[Point, list[Run]]) -> list[Figure]:
    made = [Figure(point.name, [run.events_per_second for run in runs], "events/s") for point, runs in found.items()]
    return made + [
        Figure(f"{point.name}, peak memory", [run.peak_mib for run in runs], "MiB") for point, runs in found.items()
    ]


def _run(path: Path) -> Run:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_scaling", "--one", str(path)], check=True, stdout=subprocess.PIPE
    )
    return msgspec.json.decode(done.stdout, type=Run)


def plot(found: dict[Point, list[Run]], path: Path) -> None:
    """Median rate and peak memory over events and over ids, bars from the least to the greatest."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    # Text stays text, and the same figures give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "anabranch", "font.family": "sans-serif"})
    canvas = Canvas(figsize=(9, 6), layout="constrained")
    axes = canvas.subplots(2, 2, sharex="col", sharey="row")
    for column, (label, chosen) in enumerate(_series(found)):
        for row, (unit, value) in enumerate((("events/s", "events_per_second"), ("MiB, peak", "peak_mib"))):
            axis = axes[row][column]
            values = [[getattr(run, value) for run in found[point]] for point in chosen]
            middle = [median(each) for each in values]
            spread = [
                [m - min(each) for m, each in zip(middle, values, strict=True)],
                [max(each) - m for m, each in zip(middle, values, strict=True)],
            ]
            at = [point.n_events if column == 0 else point.n_ids for point in chosen]
            axis.errorbar(at, middle, yerr=spread, marker="o", capsize=3)
            axis.set_xscale("log")
            axis.set_ylim(0, 1.15 * max(getattr(run, value) for runs in found.values() for run in runs))
            axis.grid(alpha=0.3)
            if row == 1:
                axis.set_xlabel(label)
            if column == 0:
                axis.set_ylabel(unit)
    canvas.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _series(found: dict[Point, list[Run]]) -> list[tuple[str, list[Point]]]:
    """Points over events at the fewest ids, and over ids at the number of events that most of them have."""
    fewest = min(point.n_ids for point in found)
    over_events = [point for point in found if point.n_ids == fewest]
    over_ids = [point for point in found if point not in over_events or point.n_events == _EVENTS_OVER_IDS]
    return [
        (f"events, of {fewest:,} ids", sorted(over_events, key=lambda point: point.n_events)),
        ("distinct ids", sorted(over_ids, key=lambda point: point.n_ids)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_scaling", description=TITLE)
    parser.add_argument("--long", action="store_true", help="up to ten million events and ids")
    parser.add_argument("--plot", type=Path, help="write the plot, an SVG, here")
    parser.add_argument("--runs", type=int, help=f"of each point, after one to warm up ({RUNS}; long: {_LONG_RUNS})")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.buffer.write(msgspec.json.encode(asdict(evaluate(options.one, zipf_settings()))))
        return
    points, runs = (LONG, _LONG_RUNS) if options.long else (SHORT, RUNS)
    found = _measure(points, options.runs or runs)
    show({TITLE: _figures(found)})
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
