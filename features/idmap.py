"""The id → row map: open addressing with linear probing, collisionless, compiled.

An id is a non-zero 64-bit hash; key 0 marks an empty cell. There are no tombstones, so a look-up stays short
(ALGORITHMS §5): an id is removed by moving back those that were pushed behind it.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.compiled import compiled

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
Integer = int | np.int64
Real = float | np.float32
"""Scalars of compiled code."""


def new_map(capacity: int) -> tuple[Int64s, Int32s]:
    """An empty map for at most ``capacity`` ids: keys and rows, both of length 2^⌈log₂ 2·capacity⌉."""
    size = 1 << max(2 * capacity - 1, 1).bit_length()
    return np.zeros(size, np.int64), np.zeros(size, np.int32)


@njit(cache=True, inline="always")
def mix(key: Integer) -> np.uint64:
    """The finaliser of splitmix64: spreads the bits of a key (Steele et al. 2014)."""
    x = np.uint64(key)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


@compiled
def find(keys: Int64s, rows: Int32s, key: Integer) -> Integer:
    """The row of an id, or -1."""
    mask = np.uint64(len(keys) - 1)
    cell = mix(key) & mask
    while True:
        held = keys[cell]
        if held == key:
            return np.int64(rows[cell])
        if held == 0:
            return np.int64(-1)
        cell = (cell + np.uint64(1)) & mask


@compiled
def insert(keys: Int64s, rows: Int32s, key: Integer, row: Integer) -> None:
    """Map an id that is not there yet. The caller keeps the map at most half full."""
    mask = np.uint64(len(keys) - 1)
    cell = mix(key) & mask
    while keys[cell] != 0:
        cell = (cell + np.uint64(1)) & mask
    keys[cell] = key
    rows[cell] = row


@compiled
def remove(keys: Int64s, rows: Int32s, key: Integer) -> None:
    """Forget an id that is there (Knuth, TAOCP 3, 6.4, algorithm R): no cell behind it becomes unreachable."""
    mask = np.uint64(len(keys) - 1)
    hole = mix(key) & mask
    while keys[hole] != key:
        hole = (hole + np.uint64(1)) & mask
    cell = hole
    while True:
        cell = (cell + np.uint64(1)) & mask
        if keys[cell] == 0:
            break
        home = mix(keys[cell]) & mask
        if (cell - home) & mask >= (cell - hole) & mask:
            keys[hole], rows[hole] = keys[cell], rows[cell]
            hole = cell
    keys[hole] = 0


@compiled
def put(keys: Int64s, rows: Int32s, key: Integer, row: Integer) -> bool:
    """Map an id, whether it is there or not; returns whether it is new."""
    mask = np.uint64(len(keys) - 1)
    cell = mix(key) & mask
    while keys[cell] != 0 and keys[cell] != key:
        cell = (cell + np.uint64(1)) & mask
    is_new = keys[cell] == 0
    keys[cell] = key
    rows[cell] = row
    return bool(is_new)


@compiled
def rebuild(keys: Int64s, rows: Int32s, ids: Int64s) -> None:
    """Make the map hold exactly ``ids[row] → row``, for the rows whose id is not 0."""
    keys[:] = 0
    for row in range(len(ids)):
        if ids[row] != 0:
            insert(keys, rows, ids[row], row)
