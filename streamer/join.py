"""The join: an exposure opens an example, later outcomes label it, its windows close it (DESIGN §2).

All on event time. Each exposure waits on the watermark of the partition it came from, so partitions that are read at
different speeds do not close each other's windows: key the topic by user.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.records import Partition, decode_offsets, encode_offsets
from contracts.settings import Task


@dataclass(slots=True)
class Matured:
    """What became known: parallel lists of slot and bit masks of tasks."""

    slot: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    """Tasks whose window closed: the label is final."""
    learn: list[int] = field(default_factory=list)
    """Tasks to learn from now."""


class Joiner:
    """Open exposures in slots, found by request and item or by user and item.

    1. ``advance`` moves a partition's watermark and closes the windows that it passed.
    2. ``expose`` opens a slot. 3. ``label`` finds the slot of an outcome.
    4. ``take_matured`` hands over what closed; slots whose last window closed are free from then on, not before, since
       the batch that carries their labels still refers to them.

    :param tasks: all tasks; those in ``outcomes`` wait for a label.
    :param outcomes: indices of the tasks that a later event labels.
    :param max_open: open exposures; beyond, the oldest is given up.
    """

    def __init__(self, tasks: Sequence[Task], outcomes: Sequence[int], lateness_ms: int, max_open: int) -> None:
        self._windows_ms = [task.window_ms for task in tasks]
        by_window: dict[int, int] = {}
        for index in outcomes:
            by_window[tasks[index].window_ms] = by_window.get(tasks[index].window_ms, 0) | 1 << index
        self._masks = sorted(by_window.items())
        self._learned_at_outcome = sum(1 << index for index in outcomes if tasks[index].delay == "fnc_in_loss")
        self._lateness_ms = lateness_ms
        self._max_open = max_open
        self._queues: dict[Partition, list[deque[int]]] = {}
        self.newest_ms: dict[Partition, int] = {}
        self._by_pair: dict[int, int] = {}
        self._by_request: dict[int, int] = {}
        self._opened_ms: list[int] = []
        self._labels: list[int] = []
        self._waiting: list[int] = []
        self._pair: list[int] = []
        self._request: list[int] = []
        self._free: list[int] = []
        self._released: list[int] = []
        self._matured = Matured()
        self.n_open = 0
        self.n_evicted = 0

    @property
    def n_slots(self) -> int:
        """Slots ever used at once."""
        return len(self._opened_ms)

    @property
    def n_matured(self) -> int:
        """Labels waiting for ``take_matured``."""
        return len(self._matured.slot)

    def advance(self, partition: Partition, time_ms: int) -> None:
        """An event of this time was read: close every window that lies wholly before the partition's watermark."""
        if time_ms <= self.newest_ms.get(partition, -1):
            return
        self.newest_ms[partition] = time_ms
        queues = self._queues.get(partition)
        if queues is None:
            return
        watermark_ms = time_ms - self._lateness_ms
        opened_ms = self._opened_ms
        for (window_ms, mask), queue in zip(self._masks, queues, strict=True):
            while queue and opened_ms[queue[0]] + window_ms < watermark_ms:
                self._close(queue.popleft(), mask)

    def expose(self, partition: Partition, time_ms: int, user: int, item: int, request: int) -> int:
        """Open an example and return its slot; ``request`` is 0 where the event names none."""
        if self.n_open >= self._max_open:
            self._evict_oldest()
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._opened_ms)
            for column in (self._opened_ms, self._labels, self._waiting, self._pair, self._request):
                column.append(0)
        pair, request = user ^ item, request ^ item if request else 0
        self._opened_ms[slot], self._labels[slot] = time_ms, 0
        self._waiting[slot] = sum(mask for _, mask in self._masks)
        self._pair[slot], self._request[slot] = pair, request
        for index, key in ((self._by_pair, pair), (self._by_request, request)):
            held = index.get(key)
            if key and (held is None or self._opened_ms[held] <= time_ms):
                index[key] = slot
        queues = self._queues.get(partition)
        if queues is None:
            queues = self._queues[partition] = [deque() for _ in self._masks]
        for queue in queues:
            self._insert(queue, slot)
        self.n_open += 1
        return slot

    def label(self, task: int, time_ms: int, user: int, item: int, request: int) -> str:
        """An outcome happened: ``labelled``, ``late`` (its window had closed) or ``orphan`` (no open exposure)."""
        slot = self._by_request.get(request ^ item) if request else None
        if slot is None:
            slot = self._by_pair.get(user ^ item)
            if slot is None or self._opened_ms[slot] > time_ms:
                return "orphan"
        if not self._waiting[slot] >> task & 1 or time_ms - self._opened_ms[slot] > self._windows_ms[task]:
            return "late"
        self.set_label(slot, task)
        return "labelled"

    def set_label(self, slot: int, task: int) -> None:
        """Label an open exposure; a second outcome of the same kind changes nothing."""
        bit = 1 << task
        if not self._labels[slot] & bit:
            self._labels[slot] |= bit
            if self._learned_at_outcome & bit:
                self._append(slot, bit, known=0, learn=bit)

    def take_matured(self) -> Matured:
        """What closed since the last call."""
        matured, self._matured = self._matured, Matured()
        self._free.extend(reversed(self._released))
        self._released = []
        return matured

    def close_all(self) -> None:
        """Close every open window as it stands: at the end of a log, for evaluation only."""
        for queues in self._queues.values():
            for (_, mask), queue in zip(self._masks, queues, strict=True):
                while queue:
                    self._close(queue.popleft(), mask)

    def _insert(self, queue: deque[int], slot: int) -> None:
        opened_ms = self._opened_ms
        if queue and opened_ms[slot] < opened_ms[queue[0]]:  # absurdly late: not worth a walk through all of them
            queue.appendleft(slot)
            return
        position = len(queue)
        for other in reversed(queue):
            if opened_ms[other] <= opened_ms[slot]:
                break
            position -= 1
        queue.insert(position, slot)

    def _close(self, slot: int, mask: int) -> None:
        self._append(slot, self._labels[slot], known=mask, learn=mask & ~self._learned_at_outcome)
        self._waiting[slot] &= ~mask
        if not self._waiting[slot]:
            self._release(slot)

    def _append(self, slot: int, labels: int, *, known: int, learn: int) -> None:
        self._matured.slot.append(slot)
        self._matured.labels.append(labels)
        self._matured.known.append(known)
        self._matured.learn.append(learn)

    def _release(self, slot: int) -> None:
        for index, key in ((self._by_pair, self._pair[slot]), (self._by_request, self._request[slot])):
            if index.get(key) == slot:
                del index[key]
        self._waiting[slot] = 0
        self._released.append(slot)
        self.n_open -= 1

    def _evict_oldest(self) -> None:
        longest = [queues[-1] for queues in self._queues.values() if queues[-1]]
        slot = min((queue[0] for queue in longest), key=lambda slot: (self._opened_ms[slot], slot))
        for queues in self._queues.values():
            for queue in queues:
                if queue and queue[0] == slot:
                    queue.popleft()
        self._release(slot)
        self.n_evicted += 1

    def save(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and small state."""
        arrays: dict[str, NDArray[Any]] = {
            name: np.array(column, np.int64)
            for name, column in (
                ("opened_ms", self._opened_ms),
                ("labels", self._labels),
                ("waiting", self._waiting),
                ("pair", self._pair),
                ("request", self._request),
                ("free", self._free),
                ("released", self._released),
                ("matured.slot", self._matured.slot),
                ("matured.labels", self._matured.labels),
                ("matured.known", self._matured.known),
                ("matured.learn", self._matured.learn),
                # Of two exposures with one key, the later one holds it: the order is not told by the slots.
                ("by_pair", list(self._by_pair.values())),
                ("by_request", list(self._by_request.values())),
            )
        }
        partitions = list(self._queues)
        for at, partition in enumerate(partitions):
            for window, queue in enumerate(self._queues[partition]):
                arrays[f"queue.{at}.{window}"] = np.array(queue, np.int64)
        state = {
            "partitions": [list(partition) for partition in partitions],
            "newest_ms": encode_offsets(self.newest_ms),
            "n_open": self.n_open,
            "n_evicted": self.n_evicted,
        }
        return arrays, state

    def restore(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """The inverse of :meth:`save`."""
        for name in ("opened_ms", "labels", "waiting", "pair", "request", "free", "released"):
            setattr(self, f"_{name}", arrays[name].tolist())
        self._matured = Matured(*(arrays[f"matured.{name}"].tolist() for name in ("slot", "labels", "known", "learn")))
        self._by_pair = {self._pair[slot]: slot for slot in arrays["by_pair"].tolist()}
        self._by_request = {self._request[slot]: slot for slot in arrays["by_request"].tolist()}
        self._queues = {
            (topic, partition): [deque(arrays[f"queue.{at}.{window}"].tolist()) for window in range(len(self._masks))]
            for at, (topic, partition) in enumerate(state["partitions"])
        }
        self.newest_ms = decode_offsets(state["newest_ms"])
        self.n_open, self.n_evicted = state["n_open"], state["n_evicted"]
