"""What an event will look up, asked for a few events ahead (:mod:`features.prefetch`). Nothing here changes anything.

Three steps, since each needs what the one before it brought: the cells of maps and counters that the event's ids hash
to; the rows and counts that those cells tell of; the pairs with what the user's trail holds.
"""

import numpy as np

from contracts.batch import Int64s
from features.compiled import compiled
from features.counters import Counters, locate, pair_key
from features.covisits import Covisits, unordered
from features.directory import Directory
from features.idmap import Integer, find, mix
from features.prefetch import prefetch
from features.profiles import Profiles

CELLS, ROWS, PAIRS = 6, 4, 2
"""How many events ahead each step is taken."""
_LINE_BYTES = 64


@compiled
def foresee(profiles: Profiles, users: Int64s, items: Int64s, values: Int64s, e: Integer, interests: Integer) -> None:
    """Take the three steps for the events ahead of event ``e``.

    :param users: shape ``[N]``, and likewise ``items``; ``values``: shape ``[N, ≥ interests]``, 0 where not given.
    """
    if e + CELLS < len(users):
        n = e + CELLS
        user, item = users[n], items[n]
        _cell(profiles.users, user)
        _cell(profiles.items, item)
        _head(profiles.values, user)
        _head(profiles.values, item)
        _head(profiles.pairs, pair_key(user, item))
        for k in range(interests):
            if values[n, k] != 0:
                _head(profiles.values, values[n, k])
                _head(profiles.pairs, pair_key(user, values[n, k]))
    if e + ROWS < len(users):
        n = e + ROWS
        user, item = users[n], items[n]
        row = find(profiles.users.keys, profiles.users.rows, user)
        if row >= 0:
            _row(profiles.users, row)
            _lines(profiles.history, row)
            _lines(profiles.trail, row)
        row = find(profiles.items.keys, profiles.items.rows, item)
        if row >= 0:
            _row(profiles.items, row)
        _counts(profiles.values, user)
        _counts(profiles.values, item)
        _counts(profiles.pairs, pair_key(user, item))
        for k in range(interests):
            if values[n, k] != 0:
                _counts(profiles.values, values[n, k])
                _counts(profiles.pairs, pair_key(user, values[n, k]))
    if e + PAIRS < len(users):
        n = e + PAIRS
        row = find(profiles.users.keys, profiles.users.rows, users[n])
        if row >= 0:
            for which in range(1 + interests):
                one = items[n] if which == 0 else values[n, which - 1]
                if one != 0:
                    _covisit(profiles.covisits, one)
                for m in range(profiles.trails[which], profiles.trails[which + 1]):
                    other = profiles.trail[row, m]
                    if other == 0:
                        break
                    _covisit(profiles.covisits, other)
                    if one != 0:
                        _covisit(profiles.covisits, unordered(other, one))


@compiled
def _cell(directory: Directory, key: Integer) -> None:
    cell = np.int64(mix(key) & np.uint64(len(directory.keys) - 1))
    prefetch(directory.keys, cell * 8)
    prefetch(directory.rows, cell * 4)


@compiled
def _row(directory: Directory, row: Integer) -> None:
    prefetch(directory.last_ms, row * 8)
    prefetch(directory.attributes, row * directory.attributes.shape[1] * 8)
    prefetch(directory.numbers, row * directory.numbers.shape[1] * 4)


@compiled
def _lines(table: Int64s, row: Integer) -> None:
    """A row of several lines."""
    n_bytes = table.size // table.shape[0] * 8
    for byte in range(0, n_bytes, _LINE_BYTES):
        prefetch(table, row * n_bytes + byte)


@compiled
def _head(table: Counters, key: Integer) -> None:
    prefetch(table.heads, np.int64(mix(key) & np.uint64(table.heads.shape[0] - 1)) * _LINE_BYTES)


@compiled
def _counts(table: Counters, key: Integer) -> None:
    bucket, way = locate(table, key)
    if way >= 0:
        n_bytes = table.counts.shape[2] * table.counts.shape[3] * 4
        first = (bucket * table.counts.shape[1] + way) * n_bytes
        prefetch(table.counts, first)
        prefetch(table.counts, first + n_bytes - 1)


@compiled
def _covisit(table: Covisits, key: Integer) -> None:
    prefetch(table.cells, np.int64(mix(key) & np.uint64(table.cells.shape[0] - 1)) * _LINE_BYTES)
