"""Ids with rows of their own under a hard cap: the map, the attributes beside the row, eviction of the oldest."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled, compiled_with_arrays
from features.idmap import Integer, insert, new_map, rebuild, remove

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]

_EVICTED_SHARE = 50  # one in fifty goes at a time, so that looking through all ages is paid seldom
_NEVER = np.iinfo(np.int64).max


class Directory(NamedTuple):
    """Ids with rows of their own: R rows, A categorical and N numeric attributes."""

    keys: Int64s  # the id → row map
    rows: Int32s
    ids: Int64s  # [R], 0: free
    last_ms: Int64s  # [R]
    attributes: Int64s  # [R, A], 0: not known
    numbers: Float32s  # [R, N], NaN: not known
    free: Int32s  # [R], a stack of evicted rows
    counts: Int64s  # [3]: rows on the stack, evictions ever, rows ever used


def new_directory(rows: int, n_attributes: int, n_numbers: int) -> Directory:
    """An empty directory."""
    keys, map_rows = new_map(rows)
    return Directory(
        keys,
        map_rows,
        np.zeros(rows, np.int64),
        np.zeros(rows, np.int64),
        np.zeros((rows, n_attributes), np.int64),
        np.full((rows, n_numbers), np.nan, np.float32),
        np.zeros(rows, np.int32),
        np.zeros(3, np.int64),
    )


@compiled_with_arrays
def evict(directory: Directory, protected: Int32s) -> None:
    """Free the least recently used rows, one in fifty; rows with a non-zero ``protected`` stay.

    Of rows of one age the first go. No sort: the n-th smallest age is selected, in linear time (Hoare 1961).
    """
    n_rows = len(directory.ids)
    age = directory.last_ms.copy()
    for row in range(n_rows):
        if directory.ids[row] == 0 or (len(protected) > 0 and protected[row] > 0):
            age[row] = _NEVER
    n_due = max(n_rows // _EVICTED_SHARE, 1)
    limit = np.partition(age, n_due - 1)[n_due - 1]
    n_of_limit = n_due - np.sum(age < limit)
    for row in range(n_rows):
        if age[row] > limit or age[row] == _NEVER or (age[row] == limit and n_of_limit == 0):
            continue
        n_of_limit -= age[row] == limit
        remove(directory.keys, directory.rows, directory.ids[row])
        directory.ids[row] = 0
        directory.free[directory.counts[0]] = row
        directory.counts[0] += 1
        directory.counts[1] += 1


@compiled
def is_full(directory: Directory) -> bool:
    """No row is free."""
    return bool(directory.counts[0] == 0 and directory.counts[2] == len(directory.ids))


@compiled
def admit(directory: Directory, key: Integer) -> Integer:
    """A fresh row for an id that has none; the directory must not be full."""
    if directory.counts[0] > 0:
        directory.counts[0] -= 1
        row = np.int64(directory.free[directory.counts[0]])
    else:
        row = directory.counts[2]
        directory.counts[2] += 1
    directory.ids[row] = key
    directory.last_ms[row] = 0
    directory.attributes[row, :] = 0
    directory.numbers[row, :] = np.nan
    insert(directory.keys, directory.rows, key, row)
    return row


def save_directory(directory: Directory, touched: NDArray[np.bool_] | None = None) -> dict[str, NDArray[Any]]:
    """The rows in use, as named arrays, all copies.

    :param touched: shape ``[R]``: these rows instead, and those that are free.
    """
    free = directory.free[: directory.counts[0]].copy()
    if touched is None:
        row = np.flatnonzero(directory.ids)
    else:
        touched[free] = True
        row = np.flatnonzero(touched)
    return {
        "row": row,
        "ids": directory.ids[row],
        "last_ms": directory.last_ms[row],
        "attributes": np.take(directory.attributes, row, axis=0),
        "numbers": np.take(directory.numbers, row, axis=0),
        "free": free,
        "counts": directory.counts.copy(),
    }


def load_directory(directory: Directory, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Take over what :func:`save_directory` gave: into a fresh directory all, into any other the changes."""
    row = arrays["row"]
    for part in ("ids", "last_ms", "attributes", "numbers"):
        getattr(directory, part)[row] = arrays[part]
    directory.counts[:] = arrays["counts"]
    directory.free[: directory.counts[0]] = arrays["free"]
    rebuild(directory.keys, directory.rows, directory.ids)
