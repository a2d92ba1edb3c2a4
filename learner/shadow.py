"""A second copy of arrays that are indexed by row, brought up to date by the rows that changed.

The learner stops only while it is: what is written to the disk is read from here, while learning goes on.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Bools, Int64s
from features.compiled import compiled_loop

_WORD = np.int32
_WHOLE_SHARE = 0.3
"""Changed rows, as a share of all, from which copying everything in order is quicker than copying row by row."""


class Shadow:
    """Rows as they were at the last :meth:`sync`; before the first it holds nothing.

    ``arrays`` are of the shapes of the live ones. They stay as they are until the next sync.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}

    def sync(self, live: Mapping[str, NDArray[Any]], changed: Bools, n_rows: int) -> None:
        """Take over the rows that changed, and clear their marks.

        :param live: contiguous arrays of the same number of rows; each row a whole number of four-byte words.
        :param changed: shape ``[rows]``.
        :param n_rows: rows in use; later ones are not looked at.
        """
        if {name: array.shape for name, array in self.arrays.items()} != {name: live[name].shape for name in live}:
            self.arrays = {name: np.empty_like(array) for name, array in live.items()}
            changed[:n_rows] = True
        if np.count_nonzero(changed[:n_rows]) > _WHOLE_SHARE * n_rows:
            for name, array in live.items():
                self.arrays[name][:n_rows] = array[:n_rows]
        else:
            rows = np.flatnonzero(changed[:n_rows])
            for name, array in live.items():
                _copy(_words(array), rows, _words(self.arrays[name]))
        changed[:n_rows] = False


def _words(array: NDArray[Any]) -> NDArray[np.int32]:
    return array.reshape(len(array), math.prod(array.shape[1:])).view(_WORD)


@compiled_loop
def _copy(source: NDArray[np.int32], rows: Int64s, target: NDArray[np.int32]) -> None:
    for row in rows:
        for k in range(source.shape[1]):
            target[row, k] = source[row, k]
