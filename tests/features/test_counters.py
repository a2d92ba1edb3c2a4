"""Decayed counters against their definition."""

import math

import numpy as np
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from features.counters import Counters, add, locate, new_counters, pair_key, read

HALF_LIVES_MS = np.array([1_000.0, 60_000.0])
N_TYPES = 2
EVENTS = st.lists(st.tuples(st.sampled_from([-7, 1, 2, 1 << 62]), st.integers(0, N_TYPES - 1), st.integers(0, 5_000)))


def _read(table: Counters, key: int, now_ms: int) -> list[float]:
    out = np.full(N_TYPES * len(HALF_LIVES_MS) + 1, np.nan, np.float32)
    read(table, key, now_ms, HALF_LIVES_MS, out)
    return [float(value) for value in out]


def _expected(past: list[tuple[int, int]], now_ms: int) -> list[float]:
    """:param past: type and time of each event of the key."""
    counts = [
        math.log1p(sum(2 ** -((now_ms - time_ms) / half_life_ms) for type_, time_ms in past if type_ == kind))
        for kind in range(N_TYPES)
        for half_life_ms in HALF_LIVES_MS
    ]
    elapsed_s = min(((now_ms - time_ms) / 1000 for _, time_ms in past), default=math.inf)
    return [*counts, max(1 - math.log1p(elapsed_s) / math.log1p(30 * 86_400), 0)]


@profile(deadline=None)
@given(EVENTS, st.integers(0, 10_000_000))
def test_a_count_is_the_sum_of_its_decayed_events(events: list[tuple[int, int, int]], later_ms: int) -> None:
    """Four keys share at most one bucket of four ways: none is evicted."""
    table = new_counters(1, N_TYPES, len(HALF_LIVES_MS))
    past: dict[int, list[tuple[int, int]]] = {}
    now_ms = 1_700_000_000_000
    for key, kind, step_ms in events:
        now_ms += step_ms
        np.testing.assert_allclose(_read(table, key, now_ms), _expected(past.get(key, []), now_ms), atol=1e-4)
        add(table, key, now_ms, kind, HALF_LIVES_MS)
        past.setdefault(key, []).append((kind, now_ms))
    for key, known in past.items():
        np.testing.assert_allclose(_read(table, key, now_ms + later_ms), _expected(known, now_ms + later_ms), atol=1e-4)
    assert table.evicted[0] == 0


def test_recency_is_one_now_and_zero_after_a_month_or_never() -> None:
    table = new_counters(64, N_TYPES, len(HALF_LIVES_MS))
    add(table, 5, 0, 0, HALF_LIVES_MS)
    assert [_read(table, 5, now_ms)[-1] for now_ms in (0, 30 * 86_400_000, 60 * 86_400_000)] == [1, 0, 0]
    assert _read(table, 6, 0) == [0.0] * 5


def test_an_event_older_than_the_newest_one_counts_in_full_and_turns_no_clock_back() -> None:
    table = new_counters(64, N_TYPES, len(HALF_LIVES_MS))
    add(table, 5, 10_000, 0, HALF_LIVES_MS)
    add(table, 5, 4_000, 1, HALF_LIVES_MS)
    np.testing.assert_allclose(_read(table, 5, 10_000), [math.log(2)] * 4 + [1], rtol=1e-6)


@profile(deadline=None)
@given(st.lists(st.integers(1, 9), max_size=40))
def test_a_full_bucket_forgets_the_key_that_was_used_least_recently(keys: list[int]) -> None:
    table = new_counters(4, N_TYPES, len(HALF_LIVES_MS))
    recent: list[int] = []
    n_evicted = 0
    for now_ms, key in enumerate(keys):
        add(table, key, now_ms, 0, HALF_LIVES_MS)
        if key in recent:
            recent.remove(key)
        elif len(recent) == 4:
            recent.pop(0)
            n_evicted += 1
        recent.append(key)
        assert {key for key in range(1, 10) if locate(table, key)[1] >= 0} == set(recent)
    assert table.evicted[0] == n_evicted


def test_a_key_that_comes_back_starts_from_nothing() -> None:
    table = new_counters(4, N_TYPES, len(HALF_LIVES_MS))
    for now_ms, key in enumerate([1, 1, 1, 2, 3, 4, 5, 1]):
        add(table, key, 10_000 * now_ms, 0, HALF_LIVES_MS)
    np.testing.assert_allclose(_read(table, 1, 70_000)[:2], [math.log(2)] * 2)


def test_entries_are_rounded_up_to_a_power_of_two() -> None:
    assert [new_counters(n, 1, 1).heads[:, :, 0].size for n in (1, 4, 5, 1000, 1024, 1025)] == [
        4,
        4,
        8,
        1024,
        1024,
        2048,
    ]


def test_the_order_of_a_pair_matters_and_no_pair_is_zero() -> None:
    assert len({pair_key(left, right) for left in range(1, 30) for right in range(1, 30)}) == 29 * 29
    assert pair_key(1, 2) != pair_key(2, 1)
