"""Decayed counters in a set-associative table: a hard memory bound, no map to rebuild, compiled.

A key (user × item, user × content value, item, …) hashes to a bucket of four ways. A new key takes an empty way, else
the way that counts least: its slowest counts as decayed by now, of all event types together (as in
:mod:`features.covisits`). Keys that are met once push out each other and no regular; a regular that stays away decays.
How often a key is pushed out is counted. Each entry holds one count per event type and half-life, decayed lazily:
c(t) = c(t₀)·2^(−(t−t₀)/h).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.compiled import compiled
from features.fastmath import exp2, log1p
from features.idmap import Integer, mix

WAYS = 4
PRIOR_EVENTS = np.float32(50.0)
"""Exposures that the prior counts for in a smoothed rate."""
_KEY, _LAST_MS = 0, 1
_LINE_BYTES = 64
_MONTH_LOG_SECONDS = np.float32(np.log1p(30 * 86_400.0))


class Counters(NamedTuple):
    """One table: B buckets × 4 ways, Y event types, L half-lives."""

    heads: NDArray[np.int64]  # [B, 4, 2]: key and time of the last event; a bucket's fill one cache line
    counts: NDArray[np.float32]  # [B, 4, Y, L]
    evicted: NDArray[np.int64]  # [1]
    touched: NDArray[np.uint8]  # [B], a bit per entry that changed since the last cut


def new_counters(entries: int, n_types: int, n_half_lives: int) -> Counters:
    """An empty table for ``entries`` keys, rounded up to a power of two."""
    buckets = 1 << max(-(-entries // WAYS) - 1, 0).bit_length()
    heads = np.zeros(buckets * WAYS * 2 + _LINE_BYTES // 8, np.int64)
    start = -heads.ctypes.data % _LINE_BYTES // 8
    return Counters(
        heads[start : start + buckets * WAYS * 2].reshape(buckets, WAYS, 2),
        np.zeros((buckets, WAYS, n_types, n_half_lives), np.float32),
        np.zeros(1, np.int64),
        np.zeros(buckets, np.uint8),
    )


@njit(cache=True, inline="always")
def pair_key(left: Integer, right: Integer) -> Integer:
    """The key of two ids together; order matters."""
    key = np.int64(mix(np.int64(mix(left)) + right))
    return key if key != 0 else np.int64(1)


@compiled
def locate(table: Counters, key: Integer) -> tuple[Integer, Integer]:
    """Bucket and way of a key; way -1 where it is not there."""
    bucket = np.int64(mix(key) & np.uint64(table.heads.shape[0] - 1))
    for way in range(WAYS):
        if table.heads[bucket, way, _KEY] == key:
            return bucket, way
    return bucket, -1


@compiled
def read(
    table: Counters, key: Integer, now_ms: Integer, half_lives_ms: NDArray[np.float64], out: NDArray[np.float32]
) -> None:
    """Write log(1 + decayed count) per type and half-life, then recency, into ``out``, shape ``[Y·L + 1]``.

    Recency is 1 for "just now" and falls with the log of the elapsed seconds to 0 at thirty days; 0 for never.
    """
    bucket, way = locate(table, key)
    if way < 0:
        for k in range(len(out)):
            out[k] = 0.0
        return
    n_types, n_half_lives = table.counts.shape[2], table.counts.shape[3]
    elapsed_ms = max(now_ms - table.heads[bucket, way, _LAST_MS], 0)
    counts = table.counts[bucket, way]
    for h in range(n_half_lives):
        kept = exp2(-elapsed_ms / half_lives_ms[h])
        for y in range(n_types):
            out[y * n_half_lives + h] = log1p(counts[y, h] * kept)
    out[n_types * n_half_lives] = max(
        np.float32(1.0) - log1p(elapsed_ms / 1000.0) / _MONTH_LOG_SECONDS, np.float32(0.0)
    )


@compiled
def _kept(
    table: Counters,
    bucket: Integer,
    way: Integer,
    now_ms: Integer,
    half_lives_ms: NDArray[np.float64],
    exposure: Integer,
) -> tuple[np.float32, np.float32]:
    """What is left of an entry's slowest counts, as a factor, and the exposures, or all events (-1), among them."""
    kept = exp2(-max(now_ms - table.heads[bucket, way, _LAST_MS], 0) / half_lives_ms[-1])
    n_shown = np.float32(0.0)
    for y in range(table.counts.shape[2]):
        if exposure < 0 or y == exposure:
            n_shown += table.counts[bucket, way, y, -1] * kept
    return kept, n_shown


@compiled
def _room(table: Counters, bucket: Integer, now_ms: Integer, half_lives_ms: NDArray[np.float64]) -> Integer:
    """The way for a new key: the first empty one, else that with the least decayed slowest count."""
    for way in range(WAYS):
        if table.heads[bucket, way, _KEY] == 0:
            return way
    chosen = 0
    least = np.float32(np.inf)
    for way in range(WAYS):
        _, n_events = _kept(table, bucket, way, now_ms, half_lives_ms, -1)
        if n_events < least:
            chosen, least = way, n_events
    return chosen


@compiled
def add(table: Counters, key: Integer, now_ms: Integer, kind: Integer, half_lives_ms: NDArray[np.float64]) -> None:
    """Count one event of type ``kind`` for a key; a new one takes the way that is empty or counts least."""
    bucket, way = locate(table, key)
    if way < 0:
        way = _room(table, bucket, now_ms, half_lives_ms)
        if table.heads[bucket, way, _KEY] != 0:
            table.evicted[0] += 1
        table.heads[bucket, way, _KEY] = key
        table.heads[bucket, way, _LAST_MS] = now_ms
        for y in range(table.counts.shape[2]):
            for h in range(table.counts.shape[3]):
                table.counts[bucket, way, y, h] = 0.0
    table.touched[bucket] |= np.uint8(1 << way)
    # An event older than the newest one counts in full: within the bounds of reordering the error is small.
    elapsed_ms = max(now_ms - table.heads[bucket, way, _LAST_MS], 0)
    if elapsed_ms > 0:
        for h in range(table.counts.shape[3]):
            kept = exp2(-elapsed_ms / half_lives_ms[h])
            for y in range(table.counts.shape[2]):
                table.counts[bucket, way, y, h] *= kept
        table.heads[bucket, way, _LAST_MS] = now_ms
    for h in range(table.counts.shape[3]):
        table.counts[bucket, way, kind, h] += 1.0


@compiled
def shares(
    table: Counters,
    key: Integer,
    now_ms: Integer,
    half_lives_ms: NDArray[np.float64],
    exposure: Integer,
    out: NDArray[np.float32],
) -> None:
    """Of a key's slowest counts: each type's share of the exposures, or of all events (-1), shape ``[Y]``; never 0."""
    for y in range(len(out)):
        out[y] = 0.0
    bucket, way = locate(table, key)
    n_shown = np.float32(0.0)
    if way >= 0:
        kept, n_shown = _kept(table, bucket, way, now_ms, half_lives_ms, exposure)
        for y in range(len(out)):
            out[y] = table.counts[bucket, way, y, -1] * kept
    for y in range(len(out)):
        out[y] = (out[y] + np.float32(1.0)) / (n_shown + np.float32(len(out)))


@compiled
def rates(
    table: Counters,
    key: Integer,
    now_ms: Integer,
    half_lives_ms: NDArray[np.float64],
    exposure: Integer,
    priors: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Smoothed rate of each type but the exposure's, as the log of its ratio to the prior: 0 for a key not known.

    log((c + a·p) / (n + a)) − log p of the slowest counts c, where n are the exposures, or all events (-1), p the
    prior's :func:`shares` and ``a`` :data:`PRIOR_EVENTS`: the mean under a beta prior.
    """
    bucket, way = locate(table, key)
    if way < 0:
        for k in range(len(out)):
            out[k] = 0.0
        return
    kept, n_shown = _kept(table, bucket, way, now_ms, half_lives_ms, exposure)
    log_shown = log1p(n_shown / PRIOR_EVENTS)
    k = 0
    for y in range(len(priors)):
        if y != exposure:
            out[k] = log1p(table.counts[bucket, way, y, -1] * kept / (PRIOR_EVENTS * priors[y])) - log_shown
            k += 1


def touched_entries(touched: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The entries that changed, bucket after bucket."""
    bits = np.unpackbits(touched[:, None], axis=1, count=WAYS, bitorder="little")
    return np.flatnonzero(bits.view(np.bool_))


def save_counters(table: Counters, *, changes: bool = False) -> dict[str, NDArray[Any]]:
    """The entries in use, or those that changed since the last call, as named arrays, all copies."""
    heads = table.heads.reshape(-1, 2)
    entry = touched_entries(table.touched) if changes else np.flatnonzero(heads[:, _KEY])
    table.touched[:] = 0
    return {
        "entry": entry,
        # Twice as quick as by index.
        "heads": np.take(heads, entry, axis=0),
        "counts": np.take(table.counts.reshape(-1, *table.counts.shape[2:]), entry, axis=0),
        "evicted": table.evicted.copy(),
    }


def load_counters(table: Counters, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Take over what :func:`save_counters` gave: into a fresh table all, into any other the changes."""
    entry = arrays["entry"]
    table.heads.reshape(-1, 2)[entry] = arrays["heads"]
    table.counts.reshape(-1, *table.counts.shape[2:])[entry] = arrays["counts"]
    table.evicted[:] = arrays["evicted"]
