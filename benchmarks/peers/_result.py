"""What a rival's run gives, and how rivals that learn one task at a time run on all cores."""

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from contracts.batch import Float32s

_WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class Result:
    """One run over all events, for all tasks.

    :param events_per_second: events that the joined rows were made of, over the time to learn all tasks.
    :param ne: normalised entropy per task, last half, each row scored before it was learned.
    """

    events_per_second: float
    ne: Mapping[str, float | None]


class Rival(Protocol):
    """Made of the joined examples, in its own format; then timed."""

    name: str

    def run(self) -> Result:
        """Learn the examples once, in order, from nothing."""


_barrier: Any = None


def one_process_each(
    learn: Callable[[Any], Callable[[], Float32s]], inputs: Sequence[Any]
) -> tuple[float, list[Float32s]]:
    """One process per task, all started together: a learner of one task has all cores of the machine this way.

    :param learn: makes a task's input ready, which is not timed, and gives back the work that is.
    :param inputs: one a task.
    :returns: seconds from the common start until the last task ended, and each task's logits.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(inputs))
    with ProcessPoolExecutor(len(inputs), context, _take_barrier, (barrier,)) as pool:
        done = [pool.submit(_timed, learn, one) for one in inputs]
        found = [one.result() for one in done]
    seconds = max(end for _, end, _ in found) - min(start for start, _, _ in found)
    return seconds, [logits for _, _, logits in found]


def _take_barrier(barrier: Any) -> None:
    global _barrier  # noqa: PLW0603 - a pool's worker has no other place for it
    _barrier = barrier


def _timed(learn: Callable[[Any], Callable[[], Float32s]], one: Any) -> tuple[float, float, Float32s]:
    work = learn(one)
    _barrier.wait(_WAIT_SECONDS)
    # The monotonic clock is the machine's: times of several processes compare.
    start = time.monotonic()
    logits = work()
    return start, time.monotonic(), logits
