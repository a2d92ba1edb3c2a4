"""Whether what a long run holds stays as it is: a line through each life of the process, and one through all."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.table import Table


@dataclass(frozen=True)
class Sample:
    """One look at the running learner.

    :param life: how often it was started before.
    :param age_seconds: since this start; ``run_seconds``: since the first.
    :param values: by name, such as ``resident memory, MiB``.
    """

    life: int
    age_seconds: float
    run_seconds: float
    event_time_seconds: float
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """How much a value may grow over the run: a share of its median, or so much, whichever is more."""

    share: float
    absolute: float


@dataclass(frozen=True)
class Verdict:
    """What became of one value.

    :param within: growth over the longest life, by the one slope of all lives, each with a level of its own: what a
        leak would do.
    :param across: growth of the lives' levels from the first to the last: what stays behind on the disk.
    """

    name: str
    median: float
    within: float
    across: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        """Neither grows by more than is allowed; a value that falls is flat."""
        return max(self.within, self.across) <= self.allowed


def share_moved(samples: Sequence[Sample]) -> float:
    """Of the looks behind another one of the same life, those that found later events learned.

    Who is idle shows nothing.
    """
    pairs = [pair for pair in itertools.pairwise(samples) if pair[0].life == pair[1].life]
    return sum(earlier.event_time_seconds < later.event_time_seconds for earlier, later in pairs) / max(len(pairs), 1)


def judge(samples: Sequence[Sample], warm_up_seconds: float, bounds: dict[str, Bound]) -> list[Verdict]:
    """Each bounded value's growth, from the samples of lives older than the warm-up.

    :raises ValueError: too few samples are left to tell.
    """
    settled = [sample for sample in samples if sample.age_seconds >= warm_up_seconds]
    return [_judge(settled, name, bound) for name, bound in bounds.items()]


def _judge(samples: Sequence[Sample], name: str, bound: Bound) -> Verdict:
    found = [sample for sample in samples if np.isfinite(sample.values.get(name, np.nan))]
    if len(found) < 5:
        raise ValueError(f"{len(found)} samples of {name} behind the warm-up; it takes 5. Let it run longer.")
    lives = np.array([sample.life for sample in found])
    age = np.array([sample.age_seconds for sample in found])
    time = np.array([sample.run_seconds for sample in found])
    value = np.array([sample.values[name] for sample in found])
    places = [np.flatnonzero(lives == life) for life in np.unique(lives)]
    slope = _slope(
        np.concatenate([age[place] - age[place].mean() for place in places]),
        np.concatenate([value[place] - value[place].mean() for place in places]),
    )
    times = np.array([time[place].mean() for place in places])
    levels = np.array([np.median(value[place]) for place in places])
    across = _slope(times - times.mean(), levels - levels.mean()) * float(np.ptp(times))
    median = float(np.median(value))
    longest = max(float(np.ptp(age[place])) for place in places)
    return Verdict(name, median, slope * longest, across, max(bound.share * abs(median), bound.absolute))


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Least squares through the origin; 0 where x does not vary."""
    return float(x @ y / (x @ x)) if x @ x > 0 else 0.0


def table(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts, to be printed."""
    made = Table(title="Growth over the run, behind the warm-up")
    for column in ("what", "median", "within a life", "from life to life", "allowed", ""):
        made.add_column(column, justify="left" if column in {"what", ""} else "right")
    for one in verdicts:
        numbers = (f"{one.median:,.3f}", f"{one.within:+,.3f}", f"{one.across:+,.3f}", f"{one.allowed:,.3f}")
        made.add_row(one.name, *numbers, "flat" if one.is_flat else "[bold]GROWS[/bold]")
    return made
