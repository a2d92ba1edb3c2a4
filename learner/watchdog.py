"""The watchdog: a model that has become worse than the base rate, and stays so, is not published."""

from collections.abc import Mapping, Sequence
from typing import Any

from contracts.settings import SnapshotSettings
from learner.evaluation import Metrics

_LEAST_POSITIVES = 100
"""In the window; normalised entropy of fewer is off by several hundredths by chance."""
_NEVER = -1


class Watchdog:
    """Looks at the tasks' normalised entropy in the sliding window, and says which of them hold snapshots back.

    A task's watch begins once it was at or below ``hold_above_ne``: a new model has to come down there first, and is
    better than none. Above it for ``hold_after`` without a break, it holds; at or below it again, it lets go. All on
    event time, and part of the snapshot.
    """

    def __init__(self, tasks: Sequence[str], settings: SnapshotSettings) -> None:
        self._limit_ne = settings.hold_above_ne
        self._patience_ms = settings.hold_after_ms
        self._since_ms: dict[str, int] = {}
        self._held: dict[str, bool] = dict.fromkeys(tasks, False)

    @property
    def held(self) -> dict[str, bool]:
        """By task: does it hold snapshots back?"""
        return dict(self._held)

    def look(self, window: Mapping[str, Metrics], now_ms: int) -> None:
        """Take the quality of the window that ends now.

        :param window: by task, ``ne`` and ``positives`` (:meth:`learner.evaluation.Quality.window`). Where it tells too
            little (no ``ne``, few positives), a task's watch stands as it is.
        """
        if not self._limit_ne:
            return
        for task, metrics in window.items():
            ne, positives = metrics["ne"], metrics["positives"]
            if ne is None or (positives or 0) < _LEAST_POSITIVES:
                continue
            if ne <= self._limit_ne:
                self._since_ms[task] = _NEVER
                self._held[task] = False
            elif task in self._since_ms:
                if self._since_ms[task] == _NEVER:
                    self._since_ms[task] = now_ms
                self._held[task] = now_ms - self._since_ms[task] >= self._patience_ms

    def state(self) -> dict[str, Any]:
        """What the next look depends on. A snapshot is made only while nothing is held."""
        return {"since_ms": dict(self._since_ms)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self._since_ms = {task: since_ms for task, since_ms in state["since_ms"].items() if task in self._held}
