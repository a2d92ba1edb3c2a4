"""Decayed counters against their definition."""

import math

import numpy as np
import pytest
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
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, N_TYPES - 1)), max_size=40))
def test_a_full_bucket_forgets_the_key_that_counts_least_by_its_slowest_half_life(
    events: list[tuple[int, int]],
) -> None:
    table = new_counters(4, N_TYPES, len(HALF_LIVES_MS))
    kept: dict[int, list[int]] = {}
    n_evicted = 0
    for step, (key, kind) in enumerate(events):
        now_ms = 10_000 * step
        add(table, key, now_ms, kind, HALF_LIVES_MS)
        if key not in kept and len(kept) == 4:
            counts = {
                one: sum(2 ** -((now_ms - time_ms) / HALF_LIVES_MS[-1]) for time_ms in times)
                for one, times in kept.items()
            }
            [evicted] = [one for one in kept if locate(table, one)[1] < 0]
            assert counts[evicted] <= min(counts.values()) + 1e-3
            del kept[evicted]
            n_evicted += 1
        kept.setdefault(key, []).append(now_ms)
        assert {key for key in range(1, 10) if locate(table, key)[1] >= 0} == set(kept)
    assert table.evicted[0] == n_evicted


def test_what_is_met_once_pushes_out_no_regular() -> None:
    """Three keys of four ways are viewed and clicked, then a hundred strangers come by, again and again."""
    table = new_counters(4, N_TYPES, 2)
    half_lives_ms = np.array([1_000.0, 1_000_000.0])
    now_ms = 0
    for visit in range(10):
        for key in (1, 2, 3):
            assert (locate(table, key)[1] >= 0) == (visit > 0)
            for kind in range(N_TYPES):
                add(table, key, now_ms, kind, half_lives_ms)
        for stranger in range(100):
            now_ms += 100
            add(table, 1_000 + 100 * visit + stranger, now_ms, 1, half_lives_ms)
    assert table.evicted[0] == 10 * 100 - 1
    out = np.empty(N_TYPES * 2 + 1, np.float32)
    counted = math.log1p(sum(2 ** -((now_ms - time_ms) / 1_000_000) for time_ms in range(0, now_ms, 10_000)))
    for key in (1, 2, 3):
        read(table, key, now_ms, half_lives_ms, out)
        assert out[[1, 3]] == pytest.approx([counted] * 2, rel=1e-4)


def test_a_regular_that_stays_away_is_pushed_out_by_what_is_new() -> None:
    table = new_counters(4, N_TYPES, len(HALF_LIVES_MS))
    for now_ms in range(0, 100_000, 1_000):
        add(table, 1, now_ms, 0, HALF_LIVES_MS)
    for new in (2, 3, 4):
        add(table, new, 900_000, 0, HALF_LIVES_MS)
    add(table, 5, 900_000, 0, HALF_LIVES_MS)
    assert [locate(table, key)[1] >= 0 for key in (1, 2, 3, 4, 5)] == [False, True, True, True, True]


def test_a_key_that_comes_back_starts_from_nothing() -> None:
    table = new_counters(4, N_TYPES, len(HALF_LIVES_MS))
    for now_ms, key in enumerate([1, 2, 2, 3, 3, 4, 4, 5]):
        add(table, key, 10_000 * now_ms, 0, HALF_LIVES_MS)
    assert locate(table, 1)[1] < 0
    add(table, 1, 80_000, 0, HALF_LIVES_MS)
    np.testing.assert_allclose(_read(table, 1, 80_000)[:2], [math.log(2)] * 2)


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
