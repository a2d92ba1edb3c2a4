"""The embedding table: collisionless id → row under a hard byte cap, optimiser state beside the row (ALGORITHMS §5).

One table serves all fields, since a field's name is hashed into its ids. An id gets a row of its own after
``admit_after`` sightings; until then it uses, and trains, its field's cold row, and a newly admitted row starts as a
copy of it: new things start at a trained default, not at noise. At the cap the least recently used rows go.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from contracts.batch import Bools, Float32s, Int64s, Rows
from contracts.memory import MIB, SKETCH_CELLS, embedding_row_bytes, map_bytes
from contracts.settings import EmbeddingSettings
from features.compiled import compiled, compiled_loop
from features.directory import Directory, admit, evict, is_full, load_directory, new_directory
from features.hashing import EMPTY
from features.idmap import Integer, Real, find, mix, rebuild
from learner.attention import attend, attend_back
from learner.shadow import Shadow

NO_ROW = -1
# Sightings. The admission filter forgets by halving, as Monolith's sliding filter does; at half a sighting a cell it
# still takes few new ids for known ones.
_HALVE_EVERY = 1 << 18
_MOST_SIGHTINGS = 255
_STD = 0.01
_EPSILON = 1e-8
# Sweeps over the accumulators in a half-life.
_SWEEPS = 16


def capacity_for(max_mib: float, width: int) -> int:
    """The most rows that fit under the cap, map included.

    :raises ValueError: fewer than a thousand would fit.
    """
    each = embedding_row_bytes(width)
    budget = int(max_mib * MIB)
    low, high = 0, budget // each + 1
    while high - low > 1:
        middle = (low + high) // 2
        if middle * each + map_bytes(middle) <= budget:
            low = middle
        else:
            high = middle
    if low < 1000:
        raise ValueError(
            f"embedding.max_mib must hold at least 1000 rows of width {width}; found {max_mib}, which holds {low}. "
            "Raise it."
        )
    return low


class EmbeddingTable:
    """Rows for ids, with row-wise Adagrad (one accumulator per row: Naumov et al. 2019, DLRM).

    :param width: floats per row.
    :param slots: columns of ids that each field takes; the first rows are the fields' cold rows. History ids are item
        ids, field 1.
    :param attention: floats of a row that attend together, where histories are pooled by attention to the example's
        item (Zhou et al. 2018, DIN; as scaled dot products, Vaswani et al. 2017); 0: by their mean.
    """

    def __init__(
        self,
        settings: EmbeddingSettings,
        width: int,
        slots: Sequence[int],
        n_types: int,
        seed: int,
        attention: int = 0,
    ) -> None:
        self.width = width
        self.capacity = capacity_for(settings.max_mib, width)
        self._settings = settings
        n_fields = self._n_fields = len(slots)
        self._ends = np.cumsum(slots)  # [F]
        self._field = np.repeat(np.arange(n_fields), slots)  # [C]
        self._n_types = n_types
        self._attention = attention
        self._directory = new_directory(self.capacity - n_fields, 0, 0)
        self._weights = np.zeros((self.capacity, width), np.float32)
        self._accumulators = np.full(self.capacity, settings.initial_accumulator, np.float32)
        self._sketch = np.zeros((2, SKETCH_CELLS), np.uint8)
        self._counts = np.zeros(3, np.int64)  # sightings since the last halving, rejected sightings, steps
        self._swept_ms = np.full(1, -1, np.int64)  # event time of the accumulators' last decay
        self._scratch = np.full(self.capacity, -1, np.int32)
        self._changed = np.zeros(self.capacity, np.bool_)  # rows since the last capture
        self._shadow = Shadow()
        self._summed = np.empty((0, width), np.float32)
        generator = torch.Generator().manual_seed(seed)
        self._weights[:n_fields] = torch.randn(n_fields, width, generator=generator).numpy() * _STD

    @property
    def n_rows(self) -> int:
        """Rows in use, cold rows included."""
        return int(self._n_fields + self._directory.counts[2] - self._directory.counts[0])

    @property
    def n_bytes(self) -> int:
        """Bytes of the rows in use and of the map."""
        return self.n_rows * embedding_row_bytes(self.width) + map_bytes(self.capacity - self._n_fields)

    @property
    def n_evicted(self) -> int:
        """Rows evicted since the start."""
        return int(self._directory.counts[1])

    @property
    def n_rejected(self) -> int:
        """Sightings that did not yet earn a row."""
        return int(self._counts[1])

    def rows(self, rows: Rows) -> tuple[Int64s, Int64s]:
        """Table rows of the examples' ids and histories.

        :returns: shapes ``[N, C]`` and ``[N, Y, H]``; :data:`NO_ROW` where a slot or the history has none.
        """
        ids = np.empty(rows.ids.shape, np.int64)
        history = np.empty(rows.history.shape, np.int64)
        _look(self._directory, self._n_fields, self._field, rows.ids, rows.history, ids, history, False)
        return ids, history

    def see(self, ids: Int64s, sightings: Bools, found: Int64s | None = None) -> None:
        """Count ids, shape ``[N, C]``, as seen: some are admitted, and all that have rows are not old.

        :param sightings: shape ``[N]``: the examples that count.
        :param found: what :meth:`rows` says of these ids now, where that is known.
        """
        self._counts[2] += 1
        _see(
            self._directory,
            self._n_fields,
            self._field,
            ids,
            np.zeros_like(ids) if found is None else found,
            sightings,
            self._sketch,
            self._settings.admit_after,
            self._counts,
            self._weights,
            self._accumulators,
            np.float32(self._settings.initial_accumulator),
            self._changed,
        )

    def look_again(self, rows: Rows, ids: Int64s, history: Int64s) -> None:
        """Bring what :meth:`rows` gave up to date with admissions since; with evictions since, nothing can."""
        _look(self._directory, self._n_fields, self._field, rows.ids, rows.history, ids, history, True)

    def embed(self, ids: Int64s, history: Int64s) -> torch.Tensor:
        """Concatenated rows of the fields, of several values their mean; then each type's history, pooled.

        :returns: shape ``[N, F + Y, width]``; a type without history gives zeros.
        """
        out = np.empty((len(ids), self._n_fields + history.shape[1], self.width), np.float32)
        _embed(self._weights, self._ends, self._attention, ids, history, out)
        return torch.from_numpy(out)

    def decay(self, now_ms: int) -> float:
        """Let event time pass: what the accumulators have above their initial value halves in each half-life.

        :returns: the share of it that was kept; 1 between two sweeps.
        """
        half_life_ms = self._settings.accumulator_half_life_ms
        since_ms = now_ms - int(self._swept_ms[0])
        if not half_life_ms or since_ms * _SWEEPS < half_life_ms:
            return 1.0
        kept = 1.0 if self._swept_ms[0] < 0 else 0.5 ** (since_ms / half_life_ms)
        if kept < 1.0:
            initial = np.float32(self._settings.initial_accumulator)
            self._accumulators -= initial
            self._accumulators *= np.float32(kept)
            self._accumulators += initial
            self._changed[...] = True
        self._swept_ms[0] = now_ms
        return kept

    def update(
        self, ids: Int64s, history: Int64s, gradient: torch.Tensor, scale: float, l1: float = 0.0, l2: float = 0.0
    ) -> None:
        """One row-wise Adagrad step: A += mean(g²); w −= lr·g/(√A + ε), g summed over the row's uses.

        :param gradient: shape ``[N, F + Y, width]``, of what :meth:`embed` returned; used up.
        :param scale: factor that turns the mean loss's gradient into one per example, so that a row's step does not
            depend on the size of the batch.
        :param l1: g takes l1·sign(w) + l2·w, once for each row that is touched.
        """
        n_uses = ids.size + history.size
        if len(self._summed) < n_uses:  # kept: two megabytes of fresh pages cost more than the sums in them
            self._summed = np.empty((n_uses, self.width), np.float32)
        _update(
            self._weights,
            self._accumulators,
            self._scratch,
            self._summed,
            self._ends,
            self._attention,
            ids,
            history,
            gradient.numpy(),
            np.float32(scale),
            np.float32(self._settings.learning_rate),
            np.float32(l1),
            np.float32(l2),
            self._changed,
        )

    def save(self) -> dict[str, NDArray[Any]]:
        """The rows in use and all state beside them, valid until the next save or capture."""
        return self.capture()()

    def capture(self) -> Callable[[], dict[str, NDArray[Any]]]:
        """What :meth:`save` gives, cut now and put together when it is called, while learning goes on.

        Stops for a copy of the rows that changed since the last capture. The call is due before the next one.
        """
        directory, n_used = self._directory, self._directory.counts[2]
        rest: dict[str, NDArray[Any]] = {
            "directory.free": directory.free[: directory.counts[0]].copy(),
            "directory.counts": directory.counts.copy(),
            "sketch": self._sketch.copy(),
            "counts": self._counts.copy(),
            "swept_ms": self._swept_ms.copy(),
        }
        first = self._n_fields
        cold = {"weights": self._weights[:first].copy(), "accumulators": self._accumulators[:first].copy()}
        live: dict[str, NDArray[Any]] = {"weights": self._weights[first:], "accumulators": self._accumulators[first:]}
        live |= {name: getattr(directory, name) for name in ("ids", "last_ms", "attributes", "numbers")}
        self._shadow.sync(live, self._changed[first:], n_used)
        return lambda: rest | _rows_in_use(self._shadow.arrays, cold, n_used)

    def capture_delta(self) -> Callable[[], dict[str, NDArray[Any]]]:
        """What scoring needs of the rows that changed since the last capture, cut now as :meth:`capture` does.

        By row: an id of 0 is a row that was evicted.
        """
        n_used = self._directory.counts[2]
        row = np.flatnonzero(self._changed[self._n_fields :][:n_used])
        self.capture()
        cold, held = self._weights[: self._n_fields].copy(), self._shadow.arrays
        return lambda: {
            "cold": cold,
            "row": row,
            **{name: np.take(held[name], row, axis=0) for name in ("ids", "weights")},
        }

    def moved_on(self, delta: Mapping[str, NDArray[Any]]) -> "EmbeddingTable":
        """A table to look into, as this one with a delta; this one stays as it is.

        :raises IndexError: the delta is of a larger table.
        :raises ValueError: it is of other rows.
        """
        made, old, row = copy.copy(self), self._directory, delta["row"]
        ids, counts = old.ids.copy(), old.counts.copy()
        ids[row] = delta["ids"]
        counts[2] = max(counts[2], row.max(initial=-1) + 1)
        made._weights = np.zeros_like(self._weights)
        n_used = self._n_fields + old.counts[2]
        made._weights[:n_used] = self._weights[:n_used]
        made._weights[row + self._n_fields] = delta["weights"]
        made._weights[: self._n_fields] = delta["cold"]
        keys, rows = old.keys, old.rows
        if not np.array_equal(old.ids[row], delta["ids"]):
            keys, rows = np.empty_like(keys), np.empty_like(rows)
            rebuild(keys, rows, ids)
        made._directory = old._replace(keys=keys, rows=rows, ids=ids, counts=counts)
        return made

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Fill a fresh table with what :meth:`save` gave."""
        prefix = "directory."
        load_directory(
            self._directory,
            {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)},
        )
        row = np.concatenate([np.arange(self._n_fields), arrays["directory.row"] + self._n_fields])
        self._weights[row] = arrays["weights"]
        self._accumulators[row] = arrays["accumulators"]
        self._sketch[...] = arrays["sketch"]
        self._counts[...] = arrays["counts"]
        self._swept_ms[...] = arrays["swept_ms"]
        self._changed[...] = True


def _rows_in_use(
    held: Mapping[str, NDArray[Any]], cold: Mapping[str, NDArray[Any]], n_used: Integer
) -> dict[str, NDArray[Any]]:
    """The directory's rows with an id; before their weights those of the cold rows."""
    row = np.flatnonzero(held["ids"][:n_used])
    picked = {name: np.take(array, row, axis=0) for name, array in held.items()}
    arrays = {f"directory.{name}": array for name, array in (("row", row), *picked.items()) if name not in cold}
    return arrays | {name: np.concatenate([array, picked[name]]) for name, array in cold.items()}


@compiled_loop
def _look(
    directory: Directory,
    n_fields: Integer,
    field: Int64s,
    ids: Int64s,
    history: Int64s,
    out_ids: Int64s,
    out_history: Int64s,
    again: bool,
) -> None:
    """``again``: only where a cold row was found before."""
    for n in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            if again and not 0 <= out_ids[n, c] < n_fields:
                continue
            if ids[n, c] == EMPTY:
                out_ids[n, c] = NO_ROW
                continue
            if n > 0 and ids[n, c] == ids[n - 1, c]:  # the viewer of the row before
                out_ids[n, c] = out_ids[n - 1, c]
                continue
            row = find(directory.keys, directory.rows, ids[n, c])
            out_ids[n, c] = row + n_fields if row >= 0 else field[c]
    for n in range(history.shape[0]):
        for y in range(history.shape[1]):
            for h in range(history.shape[2]):
                if again and not 0 <= out_history[n, y, h] < n_fields:
                    continue
                if n > 0 and history[n, y, h] == history[n - 1, y, h]:
                    out_history[n, y, h] = out_history[n - 1, y, h]
                elif history[n, y, h] == 0:
                    out_history[n, y, h] = NO_ROW
                else:
                    row = find(directory.keys, directory.rows, history[n, y, h])
                    out_history[n, y, h] = row + n_fields if row >= 0 else 1


@compiled_loop
def _see(
    directory: Directory,
    n_fields: Integer,
    field: Int64s,
    ids: Int64s,
    found: Int64s,
    sightings: Bools,
    sketch: NDArray[np.uint8],
    admit_after: Integer,
    counts: Int64s,
    weights: Float32s,
    accumulators: Float32s,
    initial: Real,
    changed: Bools,
) -> None:
    moved = False
    for n in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            key = ids[n, c]
            if key == EMPTY:
                continue
            row: Integer = found[n, c] - n_fields
            if row < 0 or moved:
                row = find(directory.keys, directory.rows, key)
            if row < 0 and sightings[n]:
                seen = _sighted(sketch, key, counts)
                if seen >= admit_after:
                    if is_full(directory):
                        evict(directory, directory.free[:0])
                        moved = True
                        for r in range(len(directory.ids)):
                            if directory.ids[r] == 0:
                                changed[r + n_fields] = True
                    row = admit(directory, key)
                    for d in range(weights.shape[1]):
                        weights[row + n_fields, d] = weights[field[c], d]
                    accumulators[row + n_fields] = initial
                else:
                    counts[1] += 1
            if row >= 0:
                directory.last_ms[row] = counts[2]
                changed[row + n_fields] = True


@compiled
def _sighted(sketch: NDArray[np.uint8], key: Integer, counts: Int64s) -> Integer:
    """Count a sighting in a count-min sketch of two rows (Cormode & Muthukrishnan 2005) and return the estimate.

    Only the cells that hold the least are raised (conservative update, Estan & Varghese 2002).
    """
    counts[0] += 1
    if counts[0] >= _HALVE_EVERY:
        counts[0] = 0
        for r in range(2):
            for c in range(SKETCH_CELLS):
                sketch[r, c] >>= np.uint8(1)
    hashed = mix(key)
    first = np.int64(hashed & np.uint64(SKETCH_CELLS - 1))
    second = np.int64((hashed >> np.uint64(32)) & np.uint64(SKETCH_CELLS - 1))
    seen = min(np.int64(sketch[0, first]), np.int64(sketch[1, second])) + 1
    if seen <= _MOST_SIGHTINGS:
        sketch[0, first] = max(np.int64(sketch[0, first]), seen)
        sketch[1, second] = max(np.int64(sketch[1, second]), seen)
    return seen


@njit(cache=True, nogil=True, fastmath=True)
def _embed(weights: Float32s, ends: Int64s, attention: Integer, ids: Int64s, history: Int64s, out: Float32s) -> None:
    n_fields = len(ends)
    for n in range(ids.shape[0]):
        first = 0
        for f in range(n_fields):
            if ends[f] - first == 1:
                for d in range(weights.shape[1]):
                    out[n, f, d] = weights[ids[n, first], d]
            else:
                _mean(weights, ids[n, first : ends[f]], out[n, f])
            first = ends[f]
        for y in range(history.shape[1]):
            if attention > 0:
                attend(weights, weights[ids[n, 1]], history[n, y], attention, out[n, n_fields + y])
            elif n > 0 and _same(history[n, y], history[n - 1, y]):  # the viewer of the row before
                out[n, n_fields + y] = out[n - 1, n_fields + y]
            else:
                _mean(weights, history[n, y], out[n, n_fields + y])


@njit(cache=True, inline="always")
def _same(rows: Int64s, others: Int64s) -> bool:
    differing = 0
    for h in range(len(rows)):
        differing += rows[h] != others[h]
    return differing == 0


@njit(cache=True, fastmath=True)
def _mean(weights: Float32s, rows: Int64s, out: Float32s) -> None:
    """Of the rows that are there; zeros where none is."""
    length = 0
    out[:] = 0.0
    for h in range(len(rows)):
        if rows[h] >= 0:
            length += 1
            for d in range(len(out)):
                out[d] += weights[rows[h], d]
    if length > 1:
        share = np.float32(1.0 / length)
        for d in range(len(out)):
            out[d] *= share


@njit(cache=True, nogil=True, fastmath=True)
def _update(
    weights: Float32s,
    accumulators: Float32s,
    scratch: NDArray[np.int32],
    summed: Float32s,
    ends: Int64s,
    attention: Integer,
    ids: Int64s,
    history: Int64s,
    gradient: Float32s,
    scale: Real,
    learning_rate: Real,
    l1: Real,
    l2: Real,
    changed: Bools,
) -> None:
    n_fields, width = len(ends), weights.shape[1]
    touched = np.empty(len(summed), np.int64)
    of_rows = np.empty((history.shape[2] + 1, width), np.float32)
    n_touched: Integer = 0
    for n in range(ids.shape[0]):
        first = 0
        for f in range(n_fields):
            if ends[f] - first == 1:
                n_touched = _gather(ids[n, first], gradient[n, f], scale, scratch, touched, summed, n_touched)
            else:
                of_slots = ids[n, first : ends[f]]
                n_touched = _gather_mean(of_slots, gradient[n, f], scale, scratch, touched, summed, n_touched)
            first = ends[f]
        for y in range(history.shape[1]):
            of_pooled = gradient[n, n_fields + y]
            if attention == 0 and n + 1 < len(ids) and _same(history[n, y], history[n + 1, y]):
                for d in range(width):  # one viewer: the row after takes it along
                    gradient[n + 1, n_fields + y, d] += of_pooled[d]
            elif attention == 0:
                n_touched = _gather_mean(history[n, y], of_pooled, scale, scratch, touched, summed, n_touched)
            elif attend_back(weights, ids[n, 1], history[n, y], attention, of_pooled, of_rows):
                n_touched = _gather(ids[n, 1], of_rows[-1], scale, scratch, touched, summed, n_touched)
                for h in range(history.shape[2]):
                    if history[n, y, h] >= 0:
                        n_touched = _gather(history[n, y, h], of_rows[h], scale, scratch, touched, summed, n_touched)
    for k in range(n_touched):
        row = touched[k]
        scratch[row] = -1
        changed[row] = True
        if l1 > 0.0 or l2 > 0.0:
            for d in range(width):
                summed[k, d] += l1 * np.sign(weights[row, d]) + l2 * weights[row, d]
        square = np.float32(0.0)
        for d in range(width):
            square += summed[k, d] * summed[k, d]
        accumulators[row] += square / np.float32(width)
        step = learning_rate / (np.sqrt(accumulators[row]) + np.float32(_EPSILON))
        for d in range(width):
            weights[row, d] -= step * summed[k, d]


@njit(cache=True, fastmath=True)
def _gather_mean(
    rows: Int64s,
    gradient: Float32s,
    scale: Real,
    scratch: NDArray[np.int32],
    touched: Int64s,
    summed: Float32s,
    n_touched: Integer,
) -> Integer:
    """The gradient of :func:`_mean`, to the rows that are there."""
    if not gradient.any():
        return n_touched
    length = 0
    for h in range(len(rows)):
        length += rows[h] >= 0
    if length > 0:
        share = scale / np.float32(length)
        for h in range(len(rows)):
            if rows[h] >= 0:
                n_touched = _gather(rows[h], gradient, share, scratch, touched, summed, n_touched)
    return n_touched


@njit(cache=True, fastmath=True)
def _gather(
    row: Integer,
    gradient: Float32s,
    scale: Real,
    scratch: NDArray[np.int32],
    touched: Int64s,
    summed: Float32s,
    n_touched: Integer,
) -> Integer:
    at: Integer = np.int64(scratch[row])
    if at < 0:
        at = n_touched
        scratch[row] = at
        touched[at] = row
        for d in range(len(gradient)):
            summed[at, d] = scale * gradient[d]
        return n_touched + 1
    for d in range(len(gradient)):
        summed[at, d] += scale * gradient[d]
    return n_touched
