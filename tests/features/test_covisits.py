"""Co-visitation counts against their definition, and what the encoder makes of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from features.covisits import (
    Covisits,
    add,
    chance,
    choices_key,
    count,
    load_covisits,
    meetings_key,
    new_covisits,
    save_covisits,
    unordered,
)

HALF_LIFE_MS = 10_000
EVENTS = st.lists(st.tuples(st.sampled_from([-7, 1, 2, 1 << 62]), st.integers(0, 20)), max_size=40)


def _expected(past_s: list[int], now_s: int) -> float:
    return sum(2 ** (-(now_s - time_s) / (HALF_LIFE_MS / 1000)) for time_s in past_s)


@profile(deadline=None)
@given(EVENTS)
def test_a_count_is_the_sum_of_its_decayed_events(events: list[tuple[int, int]]) -> None:
    """Four keys share one bucket of four ways: none is evicted."""
    table = new_covisits(4, HALF_LIFE_MS)
    past_s: dict[int, list[int]] = {}
    now_s = 1_700_000_000
    for key, step_s in events:
        now_s += step_s
        assert count(table, key, now_s * 1000) == pytest.approx(_expected(past_s.get(key, []), now_s), rel=1e-3)
        add(table, key, now_s * 1000)
        past_s.setdefault(key, []).append(now_s)
    assert table.evicted[0] == 0


def test_a_pair_has_no_order() -> None:
    assert unordered(3, 9) == unordered(9, 3) != unordered(3, 8)


def test_a_new_key_takes_the_place_of_the_one_that_counts_least() -> None:
    table = new_covisits(4, HALF_LIFE_MS)
    for key, times in ((1, 3), (2, 1), (3, 2), (4, 4)):
        for _ in range(times):
            add(table, key, 0)
    add(table, 5, 0)
    assert [float(count(table, key, 0)) for key in (1, 2, 3, 4, 5)] == [3, 0, 2, 4, 1]
    assert table.evicted[0] == 1
    # A day later what was frequent is worth nothing: what is new stays.
    add(table, 6, 86_400_000)
    assert count(table, 6, 86_400_000) == 1


def test_at_the_cap_what_is_frequent_or_recent_is_kept_what_is_met_once_goes_and_each_that_goes_is_counted() -> None:
    """A table of 1,024 entries, a flood of 40,000 pairs that are met once; a half-life is a hundred seconds."""
    table = new_covisits(1_024, half_life_ms=100_000)
    n_bytes, before, now = _bytes(table), range(1, 51), range(101, 151)
    key = 1_000
    for second in range(800):
        for frequent in before if second < 100 else now:
            add(table, frequent, second * 1000)
        for key in range(key + 1, key + 51):  # noqa: B020 - each is a new one
            add(table, key, second * 1000)
    at_ms = 799_000

    def n_held(keys: range) -> int:
        return sum(count(table, key, at_ms) > 0 for key in keys)

    n_once, n_kept = 800 * 50, np.count_nonzero(table.cells[..., 0])
    assert n_kept == 1_024, "it is full"
    assert table.evicted[0] == len(before) + len(now) + n_once - n_kept
    assert _bytes(table) == n_bytes
    assert n_held(now) == len(now)
    assert min(float(count(table, frequent, at_ms)) for frequent in now) == pytest.approx(143, rel=0.05)
    assert n_held(before) < len(before) / 2, "seven half-lives ago"
    recent, long_ago = range(key - 499, key + 1), range(1_001, 20_001)
    assert n_held(recent) / len(recent) > 0.5
    assert n_held(long_ago) / len(long_ago) < 0.01


def test_an_event_older_than_the_newest_one_counts_in_full_and_turns_no_clock_back() -> None:
    table = new_covisits(4, HALF_LIFE_MS)
    add(table, 1, 50_000)
    add(table, 1, 20_000)
    assert count(table, 1, 50_000) == pytest.approx(2)
    assert count(table, 1, 60_000) == pytest.approx(1, rel=1e-4)


def test_several_at_once_count_as_one_after_another() -> None:
    table = new_covisits(4, HALF_LIFE_MS)
    add(table, 1, 0, 3)
    add(table, 1, 10_000, 2)
    assert count(table, 1, 10_000) == pytest.approx(3.5)


def test_what_is_chosen_at_random_meets_as_often_as_by_chance() -> None:
    """Ten items, the first as frequent as all others together, pairs of a choice and the one before it."""
    table, rng = new_covisits(256, 10**12), np.random.default_rng(0)
    chosen = [int(one) for one in rng.choice(np.arange(1, 11), 20_000, p=[0.5, *[0.5 / 9] * 9])]
    for one, before in zip(chosen[1:], chosen, strict=False):
        add(table, one, 0)
        add(table, choices_key(0), 0)
        if one != before:
            add(table, unordered(before, one), 0)
        add(table, meetings_key(0), 0)
    for one, other in ((1, 2), (1, 10), (2, 3)):
        by_chance = chance(table, 0, 0) * count(table, one, 0) * count(table, other, 0)
        assert count(table, unordered(one, other), 0) == pytest.approx(by_chance, rel=0.2)


def test_before_anything_was_chosen_nothing_meets_by_chance() -> None:
    assert chance(new_covisits(4, HALF_LIFE_MS), 0, 0) == 0


def test_items_and_values_of_each_field_are_counted_apart() -> None:
    keys = [key(which) for key in (choices_key, meetings_key) for which in range(5)]
    assert len({*keys}) == 10


def test_saved_and_loaded_it_counts_the_same() -> None:
    table, other = new_covisits(64, HALF_LIFE_MS), new_covisits(64, HALF_LIFE_MS)
    for key in range(1, 200):
        add(table, key * 7919, key * 100)
    arrays = {name: array.copy() for name, array in save_covisits(table).items()}
    load_covisits(other, arrays)
    np.testing.assert_array_equal(other.cells, table.cells)
    assert other.evicted[0] == table.evicted[0] > 0


def _bytes(table: Covisits) -> int:
    return table.cells.nbytes


def test_sixteen_bytes_an_entry_and_a_bucket_within_one_cache_line() -> None:
    table = new_covisits(1000, HALF_LIFE_MS)
    assert _bytes(table) == 1024 * 16
    assert table.cells.ctypes.data % 64 == 0
    assert math.log2(len(table.cells)).is_integer()
