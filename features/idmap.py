"""The id → row map: open addressing with linear probing, collisionless, compiled.

An id is a non-zero 64-bit hash; key 0 marks an empty cell. Nothing is deleted one by one: whoever evicts rows rebuilds
the map from the live ids, so there are no tombstones and a look-up stays short (ALGORITHMS §5).
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
Integer = int | np.int64
Real = float | np.float32
"""Scalars of compiled code."""


def new_map(capacity: int) -> tuple[Int64s, Int32s]:
    """An empty map for at most ``capacity`` ids: keys and rows, both of length 2^⌈log₂ 2·capacity⌉."""
    size = 1 << max(2 * capacity - 1, 1).bit_length()
    return np.zeros(size, np.int64), np.zeros(size, np.int32)


def map_bytes(capacity: int) -> int:
    """Bytes of :func:`new_map`."""
    return 12 * (1 << max(2 * capacity - 1, 1).bit_length())


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


@njit(cache=True)
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


@njit(cache=True)
def insert(keys: Int64s, rows: Int32s, key: Integer, row: Integer) -> None:
    """Map an id that is not there yet. The caller keeps the map at most half full."""
    mask = np.uint64(len(keys) - 1)
    cell = mix(key) & mask
    while keys[cell] != 0:
        cell = (cell + np.uint64(1)) & mask
    keys[cell] = key
    rows[cell] = row


@njit(cache=True)
def rebuild(keys: Int64s, rows: Int32s, ids: Int64s) -> None:
    """Make the map hold exactly ``ids[row] → row``, for the rows whose id is not 0."""
    keys[:] = 0
    for row in range(len(ids)):
        if ids[row] != 0:
            insert(keys, rows, ids[row], row)
