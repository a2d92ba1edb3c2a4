"""Event ids seen lately, in two generations: bounded memory, no timer per id."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Deduplicator:
    """Remembers each id for at least ``horizon_ms`` of event time, at most twice as long.

    :param capacity: ids a generation may hold; a full one ends early, and ``ended_early`` counts it.
    """

    def __init__(self, horizon_ms: int, capacity: int) -> None:
        self._horizon_ms = horizon_ms
        self._capacity = capacity
        self._young: set[int] = set()
        self._old: set[int] = set()
        self._since_ms = -1
        self.ended_early = 0

    def seen(self, event: int, time_ms: int) -> bool:
        """Whether the id was met within the horizon; remembers it.

        :param event: 64-bit hash of the event id.
        """
        if event in self._young or event in self._old:
            return True
        if self._since_ms < 0:
            self._since_ms = time_ms
        full = len(self._young) >= self._capacity
        if full or time_ms - self._since_ms >= self._horizon_ms:
            self.ended_early += full
            self._old, self._young, self._since_ms = self._young, set(), max(self._since_ms, time_ms)
        self._young.add(event)
        return False

    def save(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and small state."""
        arrays = {
            name: np.sort(np.fromiter(ids, np.int64, len(ids)))
            for name, ids in (("young", self._young), ("old", self._old))
        }
        return arrays, {"since_ms": self._since_ms, "ended_early": self.ended_early}

    def restore(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """The inverse of :meth:`save`."""
        self._young, self._old = set(arrays["young"].tolist()), set(arrays["old"].tolist())
        self._since_ms, self.ended_early = state["since_ms"], state["ended_early"]
