"""The join: an exposure opens an example, later outcomes label it, its windows close it (DESIGN §2).

All on event time. Each exposure waits on the watermark of the partition it came from, so partitions that are read at
different speeds do not close each other's windows: key the topic by user.

State is arrays and the functions that change it are compiled, so that `streamer.match` runs them per event without
Python. :class:`Joiner` owns the arrays: it makes room, saves and restores.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Int64s
from contracts.memory import array_bytes
from contracts.records import Partition
from contracts.settings import Settings, Task
from features.compiled import compiled
from features.idmap import Int32s, Integer, find, insert, new_map, put, remove

_FIRST_SLOTS = 1024
_FIRST_PARTITIONS = 8
_NONE = -1
_DELAY_CELLS, _CELLS_PER_OCTAVE = 160, 4

LABELLED, LATE, ORPHAN = 0, 1, 2
"""What :func:`label` finds: the outcome's exposure; one whose window had closed; no open exposure."""

# Places in `Join.counts`.
_USED, _FREE, _RELEASED, _MATURED, _OPEN, _EVICTED, _PAIRS, _REQUESTS = range(8)
# Columns of `Join.matured`.
_N_COLUMNS = 5
_SLOT, _LABELS, _KNOWN, _LEARN, _LATE = range(_N_COLUMNS)


_OF_SLOTS = ("opened_ms", "labels", "waiting", "learned", "pair", "request")


class Join(NamedTuple):
    """Open exposures in S slots, W distinct windows (waits among them), P partitions.

    Per window and partition, the waiting slots are a list in order of their time, linked both ways.
    """

    opened_ms: Int64s  # [S]
    labels: Int64s  # [S], bit mask of tasks
    waiting: Int64s  # [S], bit mask of tasks whose window is open
    learned: Int64s  # [S], bit mask of tasks that learned the exposure; an outcome from now on is one positive more
    pair: Int64s  # [S], key of user and item
    request: Int64s  # [S], key of request and item; 0: none
    before: Int32s  # [W, S]
    after: Int32s  # [W, S]
    head: Int32s  # [W, P]
    tail: Int32s  # [W, P]
    newest_ms: Int64s  # [P]
    free: Int32s  # [S], a stack
    released: Int32s  # [S], free once the batch that carries their labels is closed
    pair_keys: Int64s  # maps from a key to the latest open exposure that has it
    pair_slots: Int32s
    request_keys: Int64s
    request_slots: Int32s
    matured: Int64s  # [M, 5]: slot, then masks of tasks: labels, label final, to learn from now, positives more
    counts: Int64s
    windows_ms: Int64s  # [W]
    masks: Int64s  # [W], the tasks whose label is final after it
    waits: Int64s  # [W], the tasks that learn the exposure after it, before their label is final
    task_windows_ms: Int64s  # [T]
    lateness_ms: int
    max_open: int
    delays: Int64s
    """Shape ``[T, 160]``: first outcomes by time since their exposure, see :func:`delay_bounds_ms`; not saved."""
    learned_at_once: int
    """Mask of the tasks that learn an exposure before anything is known of it."""


def delay_bounds_ms() -> NDArray[np.float64]:
    """The upper ends of the cells of ``Join.delays``, shape ``[160]``: four a doubling."""
    return 2.0 ** (np.arange(1, _DELAY_CELLS + 1) / _CELLS_PER_OCTAVE) - 1.0


@compiled
def n_matured(join: Join) -> Integer:
    """Labels waiting to be taken."""
    return np.int64(join.counts[_MATURED])


@compiled
def advance(join: Join, partition: Integer, time_ms: Integer) -> None:
    """An event of this time was read: close every window that lies wholly before the partition's watermark."""
    if time_ms <= join.newest_ms[partition]:
        return
    join.newest_ms[partition] = time_ms
    watermark_ms = time_ms - join.lateness_ms
    for window in range(len(join.windows_ms)):
        slot = join.head[window, partition]
        while slot != _NONE and join.opened_ms[slot] + join.windows_ms[window] < watermark_ms:
            _close(join, window, partition, slot)
            slot = join.head[window, partition]


@compiled
def expose(join: Join, partition: Integer, time_ms: Integer, user: Integer, item: Integer, request: Integer) -> Integer:
    """Open an example and return its slot; ``request`` is 0 where the event names none."""
    if join.counts[_OPEN] >= join.max_open:
        _evict_oldest(join)
    if join.counts[_FREE] > 0:
        join.counts[_FREE] -= 1
        slot = np.int64(join.free[join.counts[_FREE]])
    else:
        slot = np.int64(join.counts[_USED])
        join.counts[_USED] += 1
    join.opened_ms[slot] = time_ms
    join.labels[slot] = 0
    join.learned[slot] = join.learned_at_once
    waiting: Integer = np.int64(0)
    for window in range(len(join.masks)):
        waiting |= join.masks[window]
    join.waiting[slot] = waiting
    join.pair[slot] = user ^ item
    join.request[slot] = request ^ item if request != 0 else 0
    join.counts[_PAIRS] += _hold(join, join.pair_keys, join.pair_slots, join.pair[slot], slot)
    join.counts[_REQUESTS] += _hold(join, join.request_keys, join.request_slots, join.request[slot], slot)
    for window in range(len(join.windows_ms)):
        _link(join, window, partition, slot)
    join.counts[_OPEN] += 1
    return slot


@compiled
def label(join: Join, task: Integer, time_ms: Integer, user: Integer, item: Integer, request: Integer) -> Integer:
    """An outcome happened: ``LABELLED``, ``LATE`` (its window had closed) or ``ORPHAN`` (no open exposure)."""
    slot: Integer = np.int64(_NONE)
    if request != 0 and request ^ item != 0:
        slot = find(join.request_keys, join.request_slots, request ^ item)
    if slot == _NONE:
        if user ^ item != 0:
            slot = find(join.pair_keys, join.pair_slots, user ^ item)
        if slot == _NONE or join.opened_ms[slot] > time_ms:
            return ORPHAN
    if join.labels[slot] >> task & 1 == 0:
        delay_ms = max(time_ms - join.opened_ms[slot], 0)
        cell = int(_CELLS_PER_OCTAVE * math.log2(delay_ms + 1.0))
        join.delays[task, min(cell, _DELAY_CELLS - 1)] += 1
    if join.waiting[slot] >> task & 1 == 0 or time_ms - join.opened_ms[slot] > join.task_windows_ms[task]:
        return LATE
    set_label(join, slot, task)
    return LABELLED


@compiled
def set_label(join: Join, slot: Integer, task: Integer) -> None:
    """Label an open exposure; a second outcome of the same kind changes nothing."""
    bit = np.int64(1) << task
    if join.labels[slot] & bit == 0:
        join.labels[slot] |= bit
        if join.learned[slot] & bit != 0:
            _tell(join, slot, bit, 0, bit, bit)


@compiled
def close_all(join: Join, n_partitions: Integer) -> None:
    """Close every open window as it stands: at the end of a log, for evaluation only."""
    for partition in range(n_partitions):
        for window in range(len(join.windows_ms)):
            while join.head[window, partition] != _NONE:
                _close(join, window, partition, join.head[window, partition])


@compiled
def _hold(join: Join, keys: Int64s, slots: Int32s, key: Integer, slot: Integer) -> Integer:
    """Make this exposure the one that a key finds, unless a later one has it; returns how many keys that added."""
    if key == 0:
        return 0
    held = find(keys, slots, key)
    if held != _NONE and join.opened_ms[held] > join.opened_ms[slot]:
        return 0
    return 1 if put(keys, slots, key, slot) else 0


@compiled
def _let_go(keys: Int64s, slots: Int32s, key: Integer, slot: Integer) -> Integer:
    if key != 0 and find(keys, slots, key) == slot:
        remove(keys, slots, key)
        return 1
    return 0


@compiled
def _link(join: Join, window: Integer, partition: Integer, slot: Integer) -> None:
    head, tail = join.head[window, partition], join.tail[window, partition]
    opened_ms = join.opened_ms[slot]
    if head != _NONE and opened_ms < join.opened_ms[head]:  # absurdly late: not worth a walk through all of them
        behind = np.int64(_NONE)
    else:
        behind = np.int64(tail)
        while behind != _NONE and join.opened_ms[behind] > opened_ms:
            behind = np.int64(join.before[window, behind])
    following = np.int64(head) if behind == _NONE else np.int64(join.after[window, behind])
    join.before[window, slot], join.after[window, slot] = behind, following
    if behind == _NONE:
        join.head[window, partition] = slot
    else:
        join.after[window, behind] = slot
    if following == _NONE:
        join.tail[window, partition] = slot
    else:
        join.before[window, following] = slot


@compiled
def _unlink_head(join: Join, window: Integer, partition: Integer) -> None:
    following = join.after[window, join.head[window, partition]]
    join.head[window, partition] = following
    if following == _NONE:
        join.tail[window, partition] = _NONE
    else:
        join.before[window, following] = _NONE


@compiled
def _close(join: Join, window: Integer, partition: Integer, slot: Integer) -> None:
    mask = join.masks[window]
    _unlink_head(join, window, partition)
    learn = (mask | join.waits[window]) & ~join.learned[slot]
    _tell(join, slot, join.labels[slot], mask, learn, 0)
    join.learned[slot] |= learn
    join.waiting[slot] &= ~mask
    if join.waiting[slot] == 0:
        _release(join, slot)


@compiled
def _tell(join: Join, slot: Integer, labels: Integer, known: Integer, learn: Integer, late: Integer) -> None:
    row = join.matured[join.counts[_MATURED]]
    row[_SLOT], row[_LABELS], row[_KNOWN], row[_LEARN], row[_LATE] = slot, labels, known, learn, late
    join.counts[_MATURED] += 1


@compiled
def _release(join: Join, slot: Integer) -> None:
    join.counts[_PAIRS] -= _let_go(join.pair_keys, join.pair_slots, join.pair[slot], slot)
    join.counts[_REQUESTS] -= _let_go(join.request_keys, join.request_slots, join.request[slot], slot)
    join.waiting[slot] = 0
    join.released[join.counts[_RELEASED]] = slot
    join.counts[_RELEASED] += 1
    join.counts[_OPEN] -= 1


@compiled
def _evict_oldest(join: Join) -> None:
    # In every list the order is the same, so the oldest of all is the head of each list that it still waits in.
    longest = len(join.windows_ms) - 1
    oldest = np.int64(_NONE)
    owner = 0
    for partition in range(join.head.shape[1]):
        slot = np.int64(join.head[longest, partition])
        if slot != _NONE and (
            oldest == _NONE
            or join.opened_ms[slot] < join.opened_ms[oldest]
            or (join.opened_ms[slot] == join.opened_ms[oldest] and slot < oldest)
        ):
            oldest, owner = slot, partition
    for window in range(len(join.windows_ms)):
        if join.head[window, owner] == oldest:
            _unlink_head(join, window, owner)
    _release(join, oldest)
    join.counts[_EVICTED] += 1


class Matured(NamedTuple):
    """What became known of M slots: masks of tasks."""

    slot: Int64s
    labels: Int64s
    known: Int64s
    """Tasks whose window closed: the label is final."""
    learn: Int64s
    """Tasks to learn from now."""
    late: Int64s
    """Those of them that learned the exposure as a negative before: one positive more."""


class Joiner:
    """Open exposures in slots, found by request and item or by user and item; the owner of a :class:`Join`.

    1. ``reserve`` makes room for the next events. 2. The compiled functions above take them.
    3. ``take_matured`` hands over what closed; slots whose last window closed are free from then on, not before, since
       the batch that carries their labels still refers to them.

    :param tasks: all tasks; those in ``outcomes`` wait for a label.
    :param outcomes: indices of the tasks that a later event labels.
    :param max_open: open exposures; beyond, the oldest is given up.
    """

    def __init__(self, tasks: Sequence[Task], outcomes: Sequence[int], lateness_ms: int, max_open: int) -> None:
        delayed = [index for index in outcomes if tasks[index].hands_on_early]
        windows_ms = sorted(
            {tasks[index].window_ms for index in outcomes} | {tasks[index].wait_ms for index in delayed}
        )
        n_windows = len(windows_ms)
        self.partitions: list[Partition] = []
        self._index: dict[Partition, int] = {}
        pair_keys, pair_slots = new_map(_FIRST_SLOTS)
        request_keys, request_slots = new_map(_FIRST_SLOTS)
        self.state = Join(
            opened_ms=np.zeros(_FIRST_SLOTS, np.int64),
            labels=np.zeros(_FIRST_SLOTS, np.int64),
            waiting=np.zeros(_FIRST_SLOTS, np.int64),
            learned=np.zeros(_FIRST_SLOTS, np.int64),
            pair=np.zeros(_FIRST_SLOTS, np.int64),
            request=np.zeros(_FIRST_SLOTS, np.int64),
            before=np.full((n_windows, _FIRST_SLOTS), _NONE, np.int32),
            after=np.full((n_windows, _FIRST_SLOTS), _NONE, np.int32),
            head=np.full((n_windows, _FIRST_PARTITIONS), _NONE, np.int32),
            tail=np.full((n_windows, _FIRST_PARTITIONS), _NONE, np.int32),
            newest_ms=np.full(_FIRST_PARTITIONS, -1, np.int64),
            free=np.zeros(_FIRST_SLOTS, np.int32),
            released=np.zeros(_FIRST_SLOTS, np.int32),
            pair_keys=pair_keys,
            pair_slots=pair_slots,
            request_keys=request_keys,
            request_slots=request_slots,
            matured=np.zeros((_FIRST_SLOTS, _N_COLUMNS), np.int64),
            counts=np.zeros(8, np.int64),
            windows_ms=np.array(windows_ms, np.int64),
            masks=_masks(windows_ms, {index: tasks[index].window_ms for index in outcomes}),
            waits=_masks(windows_ms, {index: tasks[index].wait_ms for index in delayed}),
            task_windows_ms=np.array([task.window_ms for task in tasks], np.int64),
            lateness_ms=lateness_ms,
            max_open=max_open,
            delays=np.zeros((len(tasks), _DELAY_CELLS), np.int64),
            learned_at_once=sum(1 << index for index in outcomes if tasks[index].delay == "fnc_in_loss"),
        )

    @property
    def newest_ms(self) -> dict[Partition, int]:
        """The newest event time of each partition that gave an event."""
        times_ms = self.state.newest_ms.tolist()
        return {partition: times_ms[at] for at, partition in enumerate(self.partitions) if times_ms[at] >= 0}

    @property
    def n_matured(self) -> int:
        """Labels waiting for ``take_matured``."""
        return int(self.state.counts[_MATURED])

    @property
    def n_open(self) -> int:
        """Exposures whose windows are not all closed."""
        return int(self.state.counts[_OPEN])

    @property
    def n_evicted(self) -> int:
        """Exposures given up because too many were open."""
        return int(self.state.counts[_EVICTED])

    @property
    def n_bytes(self) -> int:
        """Bytes of the arrays."""
        return array_bytes(self.state)

    def partition(self, partition: Partition) -> int:
        """The place of a partition in the state, made if need be."""
        at = self._index.get(partition)
        if at is None:
            at = self._index[partition] = len(self.partitions)
            self.partitions.append(partition)
            if at >= len(self.state.newest_ms):
                wide = 2 * len(self.state.newest_ms)
                self._replace(
                    head=_grown(self.state.head, wide, _NONE),
                    tail=_grown(self.state.tail, wide, _NONE),
                    newest_ms=_grown(self.state.newest_ms, wide, -1),
                )
        return at

    def reserve(self, n_events: int) -> None:
        """Make room for so many events: compiled code does not grow arrays."""
        state, counts = self.state, self.state.counts.tolist()
        n_slots = counts[_USED] + max(n_events - counts[_FREE], 0)
        if n_slots > len(state.opened_ms):
            n_slots = max(n_slots, min(len(state.opened_ms) * 3 // 2, state.max_open))
            names = (*_OF_SLOTS, "before", "after", "free", "released")
            self._replace(**{name: _grown(getattr(state, name), n_slots) for name in names})
        # Each event may label once, open once and close every window there is. Most of it is never touched.
        n_told = counts[_MATURED] + n_events + (counts[_OPEN] + n_events) * len(state.windows_ms)
        if n_told > len(state.matured):
            n_most = state.max_open * len(state.windows_ms)
            n_told = max(n_told, min(len(state.matured) * 3 // 2, n_most))
            matured = np.empty((n_told, _N_COLUMNS), np.int64)
            matured[: counts[_MATURED]] = state.matured[: counts[_MATURED]]
            self._replace(matured=matured)
        for name, place in (("pair", _PAIRS), ("request", _REQUESTS)):
            keys, slots = getattr(self.state, f"{name}_keys"), getattr(self.state, f"{name}_slots")
            if 2 * (counts[place] + n_events) > len(keys):
                held = np.flatnonzero(keys)
                keys, slots = _map_of(keys[held], slots[held], counts[place] + n_events)
                self._replace(**{f"{name}_keys": keys, f"{name}_slots": slots})

    def take_matured(self) -> Matured:
        """What closed since the last call."""
        state, counts = self.state, self.state.counts
        matured = Matured(*state.matured[: counts[_MATURED]].T.copy())
        # The one released first is used again first.
        n_free = counts[_FREE] + counts[_RELEASED]
        state.free[counts[_FREE] : n_free] = state.released[: counts[_RELEASED]][::-1]
        counts[_FREE], counts[_RELEASED], counts[_MATURED] = n_free, 0, 0
        return matured

    def close_all(self) -> None:
        """Close every open window as it stands: at the end of a log, for evaluation only."""
        self.reserve(0)
        close_all(self.state, len(self.partitions))

    def save(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and small state."""
        state, n_used = self.state, self.state.counts[_USED]
        arrays = {name: getattr(state, name)[:n_used].copy() for name in _OF_SLOTS}
        arrays |= {name: getattr(state, name)[:, :n_used].copy() for name in ("before", "after")}
        n_partitions = len(self.partitions)
        arrays |= {name: getattr(state, name)[:, :n_partitions].copy() for name in ("head", "tail")}
        arrays |= {
            "newest_ms": state.newest_ms[:n_partitions].copy(),
            "free": state.free[: state.counts[_FREE]].copy(),
            "released": state.released[: state.counts[_RELEASED]].copy(),
            "matured": state.matured[: state.counts[_MATURED]].copy(),
            # Of two exposures with one key, the later one holds it: the order is not told by the slots.
            "by_pair": np.sort(state.pair_slots[state.pair_keys != 0]),
            "by_request": np.sort(state.request_slots[state.request_keys != 0]),
            "counts": state.counts.copy(),
        }
        return arrays, {"partitions": [list(partition) for partition in self.partitions]}

    def restore(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """The inverse of :meth:`save`, into a fresh joiner."""
        for topic, number in state["partitions"]:
            self.partition((topic, number))
        n_used, n_partitions = len(arrays["opened_ms"]), len(self.partitions)
        self.state.counts[:] = arrays["counts"]
        self.reserve(n_used)
        for name in _OF_SLOTS:
            getattr(self.state, name)[:n_used] = arrays[name]
        for name in ("before", "after"):
            getattr(self.state, name)[:, :n_used] = arrays[name]
        for name in ("head", "tail"):
            getattr(self.state, name)[:, :n_partitions] = arrays[name]
        self.state.newest_ms[:n_partitions] = arrays["newest_ms"]
        for name in ("free", "released", "matured"):
            getattr(self.state, name)[: len(arrays[name])] = arrays[name]
        for name, keys in (("pair", arrays["pair"]), ("request", arrays["request"])):
            slots = arrays[f"by_{name}"]
            held, held_slots = _map_of(keys[slots], slots, len(getattr(self.state, f"{name}_keys")) // 2)
            self._replace(**{f"{name}_keys": held, f"{name}_slots": held_slots})

    def _replace(self, **arrays: Any) -> None:
        self.state = self.state._replace(**arrays)


def outcomes_of(settings: Settings) -> list[int]:
    """Indices of the tasks that a later event labels."""
    return [
        index
        for index, task in enumerate(settings.tasks)
        if settings.mode == "exposure" and task.event_type != settings.events.exposure
    ]


def _masks(windows_ms: Sequence[int], of_tasks: dict[int, int]) -> Int64s:
    """For each window the mask of the tasks that have it."""
    return np.array([sum(1 << task for task, ms in of_tasks.items() if ms == one) for one in windows_ms], np.int64)


def _grown(array: NDArray[Any], length: int, fill: int = 0) -> NDArray[Any]:
    """A copy whose last axis is longer."""
    grown = np.full((*array.shape[:-1], length), fill, array.dtype)
    grown[..., : array.shape[-1]] = array
    return grown


def _map_of(keys: Int64s, slots: Int32s, capacity: int) -> tuple[Int64s, Int32s]:
    made = new_map(max(capacity, _FIRST_SLOTS))
    _insert_all(*made, keys, slots)
    return made


@compiled
def _insert_all(keys: Int64s, rows: Int32s, new_keys: Int64s, new_rows: Int32s) -> None:
    for n in range(len(new_keys)):
        insert(keys, rows, new_keys[n], new_rows[n])
