"""The wide part over ids: what a declared field's value adds to the tasks' logits (Cheng et al. 2016, Wide & Deep).

Its weights learn what a position, a device or a brand does by itself in fewer examples than the deep part needs. Users
and items have none: the counters know their rates already, and what an item adds for everybody ranks it by the stream's
fashion (ADR 35). A value's weights lie in a cell that its hash names (Weinberger et al. 2009): of n values a share of
about n / 65,536 has to share its cell with another; the deep part, by its collisionless table, tells them apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from contracts.batch import Float32s, Int64s
from contracts.memory import WIDE_CELLS
from contracts.settings import EmbeddingSettings
from features.hashing import EMPTY
from features.idmap import Integer, Real, mix

_EPSILON = 1e-8


class WideWeights:
    """Cells of K weights, 0 at first, with row-wise Adagrad, as embedding rows have it and at their rate.

    :param slots: columns of ids that each field takes, user and item first.
    :param n_weights: K: one for each task, and where tasks share, a common one behind them.
    """

    def __init__(self, settings: EmbeddingSettings, slots: Sequence[int], n_weights: int) -> None:
        self._settings = settings
        self._ends = np.cumsum(slots)[1:]
        self._weights = np.zeros((WIDE_CELLS, n_weights), np.float32)
        self._accumulators = np.full(WIDE_CELLS, settings.initial_accumulator, np.float32)
        self._summed = np.zeros((WIDE_CELLS, n_weights), np.float32)

    def add_up(self, ids: Int64s) -> torch.Tensor:
        """The sum over the fields, of several values their mean.

        :param ids: shape ``[N, C]``, hashes.
        :returns: shape ``[N, K]``.
        """
        out = np.zeros((len(ids), self._weights.shape[1]), np.float32)
        _add_up(self._weights, self._ends, ids, out)
        return torch.from_numpy(out)

    def update(self, ids: Int64s, gradient: torch.Tensor, scale: float, l1: float = 0.0, l2: float = 0.0) -> None:
        """One step, as :meth:`learner.embedding.EmbeddingTable.update` takes it.

        :param gradient: shape ``[N, K]``, of what :meth:`add_up` returned.
        """
        _update(
            self._weights,
            self._accumulators,
            self._summed,
            self._ends,
            ids,
            gradient.numpy(),
            np.float32(scale),
            np.float32(self._settings.learning_rate),
            np.float32(l1),
            np.float32(l2),
        )

    def forget(self, kept: float) -> None:
        """Keep that share of what the accumulators have above their initial value."""
        if kept < 1.0:
            initial = np.float32(self._settings.initial_accumulator)
            self._accumulators -= initial
            self._accumulators *= np.float32(kept)
            self._accumulators += initial

    def save(self) -> dict[str, NDArray[Any]]:
        """All cells; the arrays themselves."""
        return {"weights": self._weights, "accumulators": self._accumulators}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`save`."""
        self._weights[...] = arrays["weights"]
        self._accumulators[...] = arrays["accumulators"]


@njit(cache=True, inline="always")
def _cell(key: Integer) -> np.int64:
    return np.int64(mix(key) & np.uint64(WIDE_CELLS - 1))


@njit(cache=True, inline="always")
def _share(ids: Int64s) -> np.float32:
    """Of each value of a field, in its mean."""
    n_values = 0
    for key in ids:
        n_values += key != EMPTY
    return np.float32(1.0 / max(n_values, 1))


@njit(cache=True, nogil=True, fastmath=True)
def _add_up(weights: Float32s, ends: Int64s, ids: Int64s, out: Float32s) -> None:
    for n in range(len(ids)):
        for f in range(1, len(ends)):
            share = _share(ids[n, ends[f - 1] : ends[f]])
            for c in range(ends[f - 1], ends[f]):
                if ids[n, c] != EMPTY:
                    cell = _cell(ids[n, c])
                    for k in range(out.shape[1]):
                        out[n, k] += share * weights[cell, k]


@njit(cache=True, nogil=True, fastmath=True)
def _update(
    weights: Float32s,
    accumulators: Float32s,
    summed: Float32s,
    ends: Int64s,
    ids: Int64s,
    gradient: Float32s,
    scale: Real,
    learning_rate: Real,
    l1: Real,
    l2: Real,
) -> None:
    """``summed``: of each cell, zeros before and after."""
    touched, is_touched = np.empty(ids.size, np.int64), np.zeros(len(weights), np.bool_)
    n_touched = 0
    for n in range(len(ids)):
        for f in range(1, len(ends)):
            share = scale * _share(ids[n, ends[f - 1] : ends[f]])
            for c in range(ends[f - 1], ends[f]):
                if ids[n, c] != EMPTY:
                    cell = _cell(ids[n, c])
                    if not is_touched[cell]:
                        touched[n_touched] = cell
                        is_touched[cell] = True
                        n_touched += 1
                    for k in range(gradient.shape[1]):
                        summed[cell, k] += share * gradient[n, k]
    for t in range(n_touched):
        cell, square = touched[t], np.float32(0.0)
        of_cell = summed[cell]
        for k in range(len(of_cell)):
            of_cell[k] += l1 * np.sign(weights[cell, k]) + l2 * weights[cell, k]
            square += of_cell[k] * of_cell[k]
        accumulators[cell] += square / np.float32(len(of_cell))
        step = learning_rate / (np.sqrt(accumulators[cell]) + np.float32(_EPSILON))
        for k in range(len(of_cell)):
            weights[cell, k] -= step * of_cell[k]
            of_cell[k] = 0.0
