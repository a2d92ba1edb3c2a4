"""Event ids seen lately: at least the horizon, at most twice of it."""

import numpy as np
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from streamer.deduplicate import Deduplicator

HORIZON_MS = 100
STEPS = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 60)), max_size=80)


@given(STEPS)
def test_an_id_is_known_for_the_horizon_and_forgotten_after_two(steps: list[tuple[int, int]]) -> None:
    seen = Deduplicator(HORIZON_MS, capacity=1000)
    taken_ms: dict[int, int] = {}
    now_ms = 0
    for event, step_ms in steps:
        now_ms += step_ms
        age_ms = now_ms - taken_ms[event] if event in taken_ms else None
        found = seen.seen(event, now_ms)
        if age_ms is None:
            assert not found
        elif age_ms < HORIZON_MS:
            assert found
        if not found:
            taken_ms[event] = now_ms


def test_an_id_does_not_stay_for_ever() -> None:
    seen = Deduplicator(HORIZON_MS, capacity=1000)
    seen.seen(1, 0)
    for now_ms in (100, 200):
        seen.seen(now_ms, now_ms)
    assert not seen.seen(1, 201)


@profile(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(-500, 500)), max_size=200))
def test_memory_is_bounded_whatever_the_times(events: list[tuple[int, int]]) -> None:
    seen = Deduplicator(HORIZON_MS, capacity=10)
    for event, time_ms in events:
        seen.seen(event, 1000 + time_ms)
        arrays, _ = seen.save()
        assert max(len(ids) for ids in arrays.values()) <= 10
        assert seen.seen(event, 1000 + time_ms)


def test_a_full_generation_ends_early_and_is_counted() -> None:
    seen = Deduplicator(HORIZON_MS, capacity=3)
    for event in range(1, 8):
        seen.seen(event, 0)
    assert seen.ended_early == 2
    assert [seen.seen(event, 0) for event in (4, 5, 6, 7)] == [True] * 4


def test_an_old_event_does_not_turn_the_horizon_back() -> None:
    """A generation that ends since it is full, at an event out of order, must not make the next one end at once."""
    seen = Deduplicator(HORIZON_MS, capacity=2)
    for event, time_ms in ((1, 1000), (2, 1000), (3, 10), (4, 1050)):
        seen.seen(event, time_ms)
    assert seen.seen(2, 1060)


@given(STEPS, STEPS)
def test_restored_it_goes_on_like_the_one_that_was_saved(
    before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    seen, restored = (Deduplicator(HORIZON_MS, capacity=4) for _ in range(2))
    now_ms = 0
    for event, step_ms in before:
        now_ms += step_ms
        seen.seen(event, now_ms)
    restored.restore(*seen.save())
    for event, step_ms in after:
        now_ms += step_ms
        assert restored.seen(event, now_ms) == seen.seen(event, now_ms)
    assert restored.ended_early == seen.ended_early
    for name, ids in seen.save()[0].items():
        np.testing.assert_array_equal(restored.save()[0][name], ids)
