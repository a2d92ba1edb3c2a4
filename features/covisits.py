"""Item-item co-visitation: how often two items were chosen close to each other by one user, decayed, hard-bounded.

Pairs have no order; how often an item was chosen is kept beside them, so that count(a, b) / √(count(a)·count(b)), the
cosine of item-based collaborative filtering (Sarwar et al., WWW 2001), is three look-ups. How many choices and pairs
there were in all is kept there too: :func:`chance` tells by them how often two would meet if nothing went with
anything. A bucket of four ways fills one cache line; a new pair takes the place of the one that counts least, since
most pairs are met once.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.compiled import compiled
from features.counters import pair_key, touched_entries
from features.fastmath import exp2
from features.idmap import Integer, mix

Int64s = NDArray[np.int64]

WAYS = 4
_KEY, _STATE = 0, 1
_LINE_BYTES = 64
_SECONDS_MASK = 0xFFFFFFFF


class Covisits(NamedTuple):
    """One table of B buckets. A state packs a count (float32, upper half) and its time in seconds (lower half)."""

    cells: Int64s  # [B, 4, 2]
    evicted: Int64s  # [1]
    half_life_s: float
    touched: NDArray[np.uint8]  # [B], a bit per entry that changed since the last cut


def new_covisits(entries: int, half_life_ms: int) -> Covisits:
    """An empty table for ``entries`` pairs, rounded up to a power of two."""
    buckets = 1 << max(-(-entries // WAYS) - 1, 0).bit_length()
    cells = np.zeros(buckets * WAYS * 2 + _LINE_BYTES // 8, np.int64)
    start = -cells.ctypes.data % _LINE_BYTES // 8
    return Covisits(
        cells[start : start + buckets * WAYS * 2].reshape(buckets, WAYS, 2),
        np.zeros(1, np.int64),
        half_life_ms / 1000,
        np.zeros(buckets, np.uint8),
    )


@compiled
def unordered(left: Integer, right: Integer) -> Integer:
    """The key of two items together."""
    return pair_key(min(left, right), max(left, right))


@compiled
def choices_key(which: Integer) -> Integer:
    """The key of all choices: of items (0), or of the values of one field (1, 2, …)."""
    return pair_key(0, 2 * which + 1)  # no id is 0, so no pair has this key


@compiled
def meetings_key(which: Integer) -> Integer:
    """The key of all pairs of them."""
    return pair_key(0, 2 * which + 2)


@compiled
def chance(table: Covisits, which: Integer, now_ms: Integer) -> np.float32:
    """What count(a)·count(b) is to be multiplied by for how often a and b would meet by chance; 0 where nothing met.

    Of P pairs between N choices, either of a pair is an item with its share of the choices: 2P·count(a)·count(b) / N².
    """
    choices = count(table, choices_key(which), now_ms)
    if choices <= 0.0:
        return np.float32(0.0)
    return np.float32(2.0) * count(table, meetings_key(which), now_ms) / (choices * choices)


@compiled
def _count(table: Covisits, state: Integer, now_s: Integer) -> np.float32:
    elapsed_s = max(now_s - (state & _SECONDS_MASK), 0)
    return np.float32(np.int32(state >> 32).view(np.float32) * exp2(-elapsed_s / table.half_life_s))


@compiled
def count(table: Covisits, key: Integer, now_ms: Integer) -> np.float32:
    """The decayed count of a key: a pair, or an item's own total."""
    bucket = np.int64(mix(key) & np.uint64(table.cells.shape[0] - 1))
    for way in range(WAYS):
        if table.cells[bucket, way, _KEY] == key:
            return _count(table, table.cells[bucket, way, _STATE], now_ms // 1000)
    return np.float32(0.0)


@compiled
def add(table: Covisits, key: Integer, now_ms: Integer, times: Integer = 1) -> None:
    """Count so many times more; a new key takes the way that is empty or counts least."""
    now_s = now_ms // 1000
    bucket = np.int64(mix(key) & np.uint64(table.cells.shape[0] - 1))
    chosen = 0
    least = np.float32(np.inf)
    found = np.float32(0.0)
    for way in range(WAYS):
        held = table.cells[bucket, way, _KEY]
        counted = _count(table, table.cells[bucket, way, _STATE], now_s) if held != 0 else np.float32(-1.0)
        if held == key:
            chosen, found = way, counted
            break
        if counted < least:
            chosen, least = way, counted
    table.touched[bucket] |= np.uint8(1 << chosen)
    if table.cells[bucket, chosen, _KEY] != key:
        if table.cells[bucket, chosen, _KEY] != 0:
            table.evicted[0] += 1
        table.cells[bucket, chosen, _KEY] = key
        found = np.float32(0.0)
    else:
        # An event older than the newest one counts in full, and turns no clock back.
        now_s = max(now_s, table.cells[bucket, chosen, _STATE] & _SECONDS_MASK)
    bits = np.int64(np.float32(found + np.float32(times)).view(np.int32))
    table.cells[bucket, chosen, _STATE] = (bits << 32) | (now_s & _SECONDS_MASK)


def save_covisits(table: Covisits, *, changes: bool = False) -> dict[str, NDArray[Any]]:
    """The entries in use, or those that changed since the last call, as named arrays, all copies."""
    cells = table.cells.reshape(-1, 2)
    entry = touched_entries(table.touched) if changes else np.flatnonzero(cells[:, _KEY])
    table.touched[:] = 0
    return {"entry": entry, "cells": np.take(cells, entry, axis=0), "evicted": table.evicted.copy()}


def load_covisits(table: Covisits, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Take over what :func:`save_covisits` gave: into a fresh table all, into any other the changes."""
    table.cells.reshape(-1, 2)[arrays["entry"]] = arrays["cells"]
    table.evicted[:] = arrays["evicted"]
