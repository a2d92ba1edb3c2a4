"""Decayed counters in a set-associative table: a hard memory bound, no map to rebuild, compiled.

A key (user × item, user × content value, item, …) hashes to a bucket of four ways. A new key takes an empty way, else
the way that was used least recently, as a processor's cache does: what is forgotten is old, and how often that happens
is counted. Each entry holds one count per event type and half-life, decayed lazily: c(t) = c(t₀)·2^(−(t−t₀)/h).
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.idmap import Integer, mix

WAYS = 4
_MONTH_LOG_SECONDS = np.log1p(30 * 86_400.0)


class Counters(NamedTuple):
    """One table: B buckets × 4 ways, Y event types, L half-lives."""

    keys: NDArray[np.int64]  # [B, 4]
    last_ms: NDArray[np.int64]  # [B, 4]
    counts: NDArray[np.float32]  # [B, 4, Y, L]
    evicted: NDArray[np.int64]  # [1]


def new_counters(entries: int, n_types: int, n_half_lives: int) -> Counters:
    """An empty table for ``entries`` keys, rounded up to a power of two."""
    buckets = 1 << max(-(-entries // WAYS) - 1, 0).bit_length()
    return Counters(
        np.zeros((buckets, WAYS), np.int64),
        np.zeros((buckets, WAYS), np.int64),
        np.zeros((buckets, WAYS, n_types, n_half_lives), np.float32),
        np.zeros(1, np.int64),
    )


@njit(cache=True, inline="always")
def pair_key(left: Integer, right: Integer) -> Integer:
    """The key of two ids together; order matters."""
    key = np.int64(mix(np.int64(mix(left)) + right))
    return key if key != 0 else np.int64(1)


@njit(cache=True)
def locate(table: Counters, key: Integer) -> tuple[Integer, Integer]:
    """Bucket and way of a key; way -1 where it is not there."""
    bucket = np.int64(mix(key) & np.uint64(table.keys.shape[0] - 1))
    for way in range(WAYS):
        if table.keys[bucket, way] == key:
            return bucket, way
    return bucket, -1


@njit(cache=True)
def read(
    table: Counters, key: Integer, now_ms: Integer, half_lives_ms: NDArray[np.float64], out: NDArray[np.float32]
) -> None:
    """Write log(1 + decayed count) per type and half-life, then recency, into ``out``, shape ``[Y·L + 1]``.

    Recency is 1 for "just now" and falls with the log of the elapsed seconds to 0 at thirty days; 0 for never.
    """
    bucket, way = locate(table, key)
    if way < 0:
        out[:] = 0.0
        return
    n_types, n_half_lives = table.counts.shape[2], table.counts.shape[3]
    elapsed_ms = max(now_ms - table.last_ms[bucket, way], 0)
    for h in range(n_half_lives):
        kept = np.exp2(-elapsed_ms / half_lives_ms[h])
        for y in range(n_types):
            count = table.counts[bucket, way, y, h]
            out[y * n_half_lives + h] = np.log1p(count * kept) if count > 0.0 else 0.0
    out[n_types * n_half_lives] = max(1.0 - np.log1p(elapsed_ms / 1000.0) / _MONTH_LOG_SECONDS, 0.0)


@njit(cache=True)
def add(table: Counters, key: Integer, now_ms: Integer, kind: Integer, half_lives_ms: NDArray[np.float64]) -> None:
    """Count one event of type ``kind`` for a key, evicting the bucket's least recently used key if need be."""
    bucket, way = locate(table, key)
    if way < 0:
        way = 0
        for other in range(WAYS):
            if table.keys[bucket, other] == 0:
                way = other
                break
            if table.last_ms[bucket, other] < table.last_ms[bucket, way]:
                way = other
        if table.keys[bucket, way] != 0:
            table.evicted[0] += 1
        table.keys[bucket, way] = key
        table.last_ms[bucket, way] = now_ms
        table.counts[bucket, way, :, :] = 0.0
    # An event older than the newest one counts in full: within the bounds of reordering the error is small.
    elapsed_ms = max(now_ms - table.last_ms[bucket, way], 0)
    if elapsed_ms > 0:
        for h in range(table.counts.shape[3]):
            kept = np.exp2(-elapsed_ms / half_lives_ms[h])
            for y in range(table.counts.shape[2]):
                table.counts[bucket, way, y, h] *= kept
        table.last_ms[bucket, way] = now_ms
    for h in range(table.counts.shape[3]):
        table.counts[bucket, way, kind, h] += 1.0
