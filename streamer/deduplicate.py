"""Event ids seen lately, in two generations: bounded memory, no timer per id.

State is arrays; :func:`seen` is compiled, so that `streamer.match` runs it per event without Python.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Int64s
from contracts.memory import array_bytes
from features.compiled import compiled
from features.idmap import Integer, mix

_FIRST_CELLS = 1 << 11


class Seen(NamedTuple):
    """Two sets of ids by open addressing, at most half full; 0 is an empty cell."""

    first: Int64s
    second: Int64s
    counts: Int64s  # [5]: which set is the young one, its start in event time, ids in each, generations ended early
    horizon_ms: int
    capacity: int


@compiled
def _cell(ids: Int64s, event: Integer) -> np.uint64:
    mask = np.uint64(len(ids) - 1)
    cell = mix(event) & mask
    while ids[cell] != 0 and ids[cell] != event:
        cell = (cell + np.uint64(1)) & mask
    return cell


@compiled
def seen(state: Seen, event: Integer, time_ms: Integer) -> bool:
    """Whether the id was met within the horizon; remembers it.

    :param event: 64-bit hash of the event id, not 0.
    """
    counts = state.counts
    young, old = (state.first, state.second) if counts[0] == 0 else (state.second, state.first)
    cell = _cell(young, event)
    if young[cell] == event or old[_cell(old, event)] == event:
        return True
    if counts[1] < 0:
        counts[1] = time_ms
    full = counts[2 + counts[0]] >= state.capacity
    if full or time_ms - counts[1] >= state.horizon_ms:
        if full:
            counts[4] += 1
        counts[0] = 1 - counts[0]
        counts[1] = max(counts[1], time_ms)
        counts[2 + counts[0]] = 0
        young = old
        young[:] = 0
        cell = _cell(young, event)
    young[cell] = event
    counts[2 + counts[0]] += 1
    return False


class Deduplicator:
    """Remembers each id for at least ``horizon_ms`` of event time, at most twice as long; the owner of a :class:`Seen`.

    :param capacity: ids a generation may hold; a full one ends early, and ``ended_early`` counts it.
    """

    def __init__(self, horizon_ms: int, capacity: int) -> None:
        first, second = np.zeros((2, _FIRST_CELLS), np.int64)
        self.state = Seen(first, second, np.array([0, -1, 0, 0, 0], np.int64), horizon_ms, capacity)

    @property
    def ended_early(self) -> int:
        """Generations that ended before their time since they were full."""
        return int(self.state.counts[4])

    @property
    def n_bytes(self) -> int:
        """Bytes of the arrays."""
        return array_bytes(self.state)

    def reserve(self, n_events: int) -> None:
        """Make room for so many events: compiled code does not grow arrays."""
        # Either set may be the young one by the end of them.
        for name, n_ids in (("first", self.state.counts[2]), ("second", self.state.counts[3])):
            ids: Int64s = getattr(self.state, name)
            n_most = min(int(n_ids) + n_events, self.state.capacity + 1)
            if 2 * n_most > len(ids):
                grown: dict[str, Any] = {name: _set_of(ids[ids != 0], n_most)}
                self.state = self.state._replace(**grown)

    def save(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and small state."""
        young, since_ms, *_, ended_early = self.state.counts.tolist()
        sets = [np.sort(ids[ids != 0]) for ids in self.state[:2]]
        return {"young": sets[young], "old": sets[1 - young]}, {"since_ms": since_ms, "ended_early": ended_early}

    def restore(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """The inverse of :meth:`save`."""
        young, old = arrays["young"], arrays["old"]
        self.state = self.state._replace(first=_set_of(young, len(young)), second=_set_of(old, len(old)))
        self.state.counts[:] = (0, state["since_ms"], len(young), len(old), state["ended_early"])


def _set_of(ids: Int64s, capacity: int) -> Int64s:
    """A set that is at most half full with ``capacity`` ids."""
    made = np.zeros(max(_FIRST_CELLS, 1 << max(2 * capacity - 1, 1).bit_length()), np.int64)
    _add_all(made, ids)
    return made


@compiled
def _add_all(made: Int64s, ids: Int64s) -> None:
    for n in range(len(ids)):
        made[_cell(made, ids[n])] = ids[n]
