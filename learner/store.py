"""Examples that wait for their labels, in the slots that the join gave them: features as of their exposure."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Batch, Bools, Float32s, Int64s, Layout, Rows
from contracts.memory import array_bytes
from features.compiled import compiled_loop
from learner.shadow import Shadow

_FIRST_SLOTS = 1024


class ExampleStore:
    """Columns indexed by slot. A late label trains on these features, never on today's (DESIGN §2).

    :param max_open: exposures that wait at a time; there are as many slots, and those of the labels of one batch.
    :param keeps_late: which outcomes came behind a wait is kept until the window closes.
    """

    def __init__(self, layout: Layout, max_open: int, *, keeps_late: bool = False) -> None:
        self._max_open = max_open
        n_tasks = len(layout.tasks)
        self._columns: dict[str, NDArray[Any]] = {
            "ids": np.zeros((_FIRST_SLOTS, layout.n_ids), np.int64),
            "history": np.zeros((_FIRST_SLOTS, len(layout.event_types), layout.history_length), np.int64),
            "dense": np.zeros((_FIRST_SLOTS, len(layout.dense)), np.float32),
            "log_q": np.zeros(_FIRST_SLOTS, np.float32),
            "logits": np.zeros((_FIRST_SLOTS, n_tasks), np.float32),
            "truth": np.full((_FIRST_SLOTS, n_tasks), np.nan, np.float32),
            "time_ms": np.zeros(_FIRST_SLOTS, np.int64),
            "list_id": np.zeros(_FIRST_SLOTS, np.int64),
        }
        if keeps_late:
            self._columns["late"] = np.zeros((_FIRST_SLOTS, n_tasks), np.float32)
        self._changed = np.zeros(_FIRST_SLOTS, np.bool_)  # slots since the last capture
        self._shadow = Shadow()

    @property
    def n_bytes(self) -> int:
        """Bytes of the columns, without the copy for snapshots."""
        return array_bytes((*self._columns.values(), self._changed))

    def put(self, batch: Batch) -> None:
        """Keep the batch's rows that have a slot, and which outcomes came late."""
        self._put_rows(batch)
        if "late" in self._columns:
            np.maximum.at(self._columns["late"], batch.matured_slot, batch.matured_late.astype(np.float32))
            self._changed[batch.matured_slot] = True

    def _put_rows(self, batch: Batch) -> None:
        slot = batch.slot
        if not len(slot) or slot.max() < 0:
            return
        self._grow(int(slot.max()) + 1)
        rows, columns = batch.rows, self._columns
        for name, values in (
            ("ids", rows.ids),
            ("history", rows.history),
            ("dense", rows.dense),
            ("log_q", rows.log_q),
            ("time_ms", batch.time_ms),
            ("list_id", batch.list_id),
        ):
            _put(values.reshape(len(slot), -1), slot, columns[name].reshape(len(columns[name]), -1))
        put = slot[slot >= 0]
        columns["logits"][put] = 0.0
        if "late" in columns:
            columns["late"][put] = 0.0
        self._changed[put] = True
        columns["truth"][put] = np.nan if batch.truth is None else batch.truth[slot >= 0]

    def put_logits(self, slot: Int64s, logits: Float32s) -> None:
        """Keep the logits of this moment, shape ``[B, T]``, of the rows that were put into these slots; -1: of none."""
        kept = np.flatnonzero(slot >= 0)
        self._columns["logits"][slot[kept]] = logits[kept]
        self._changed[slot[kept]] = True

    def skip(self, slot: Int64s) -> None:
        """Note that the batch which put rows into these slots was skipped; -1: into none."""
        put = slot[slot >= 0]
        self._columns["logits"][put] = np.nan
        self._changed[put] = True

    def skipped(self, slot: Int64s) -> Bools:
        """Of these slots, shape ``[M, T]``: rows of a skipped batch, or from before the task was added."""
        skipped: Bools = np.isnan(self._columns["logits"][slot])
        return skipped

    def rows(self, slot: Int64s) -> Rows:
        """Features of these slots."""
        columns = self._columns
        return Rows(columns["ids"][slot], columns["history"][slot], columns["dense"][slot], columns["log_q"][slot])

    def column(self, name: str, slot: Int64s) -> NDArray[Any]:
        """``logits``, ``truth``, ``ids``, ``time_ms`` or ``list_id`` of these slots."""
        values: NDArray[Any] = self._columns[name][slot]
        return values

    def came_late(self, slot: Int64s) -> Bools:
        """Which outcomes of these slots came behind a wait, shape ``[M, T]``; only where that is kept."""
        late: Bools = self._columns["late"][slot] > 0
        return late

    def save(self) -> dict[str, NDArray[Any]]:
        """All columns, valid until the next save or capture."""
        return self.capture()()

    def capture(self) -> Callable[[], dict[str, NDArray[Any]]]:
        """What :meth:`save` gives, cut now: stops for a copy of the slots that changed since the last capture."""
        self._shadow.sync(self._columns, self._changed, len(self._changed))
        return lambda: dict(self._shadow.arrays)

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`save`."""
        self._columns = {name: arrays[name].copy() for name in self._columns}
        self._changed = np.ones(len(arrays["log_q"]), np.bool_)

    def _grow(self, n_slots: int) -> None:
        have = len(self._columns["log_q"])
        if n_slots <= have:
            return
        n_slots = max(n_slots, min(have + have // 2, self._max_open))
        for column in self._columns.values():
            # In place: the system moves pages, not bytes. Nobody else holds these arrays.
            column.resize((n_slots, *column.shape[1:]), refcheck=False)
        self._changed = np.ones(n_slots, np.bool_)


@compiled_loop
def _put(values: NDArray[Any], slot: Int64s, column: NDArray[Any]) -> None:
    """Rows of ``values``, shape ``[N, W]``, into their slots; -1: nowhere."""
    for n in range(len(slot)):
        if slot[n] >= 0:
            for w in range(values.shape[1]):
                column[slot[n], w] = values[n, w]
