"""Event ids seen lately: at least the horizon, at most twice of it."""

import numpy as np
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from streamer.deduplicate import Deduplicator, seen

HORIZON_MS = 100


class Driven(Deduplicator):
    """A de-duplicator that is given its events one by one."""

    def seen(self, event: int, time_ms: int) -> bool:
        self.reserve(1)
        return bool(seen(self.state, event, time_ms))


STEPS = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 60)), max_size=80)


@profile(deadline=None)
@given(STEPS)
def test_an_id_is_known_for_the_horizon_and_forgotten_after_two(steps: list[tuple[int, int]]) -> None:
    ids = Driven(HORIZON_MS, capacity=1000)
    taken_ms: dict[int, int] = {}
    now_ms = 0
    for event, step_ms in steps:
        now_ms += step_ms
        age_ms = now_ms - taken_ms[event] if event in taken_ms else None
        found = ids.seen(event, now_ms)
        if age_ms is None:
            assert not found
        elif age_ms < HORIZON_MS:
            assert found
        if not found:
            taken_ms[event] = now_ms


def test_an_id_does_not_stay_for_ever() -> None:
    ids = Driven(HORIZON_MS, capacity=1000)
    ids.seen(1, 0)
    for now_ms in (100, 200):
        ids.seen(now_ms, now_ms)
    assert not ids.seen(1, 201)


@profile(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(-500, 500)), max_size=200))
def test_memory_is_bounded_whatever_the_times(events: list[tuple[int, int]]) -> None:
    ids = Driven(HORIZON_MS, capacity=10)
    for event, time_ms in events:
        ids.seen(event, 1000 + time_ms)
        arrays, _ = ids.save()
        assert max(len(generation) for generation in arrays.values()) <= 10
        assert ids.seen(event, 1000 + time_ms)


def test_a_full_generation_ends_early_and_is_counted() -> None:
    ids = Driven(HORIZON_MS, capacity=3)
    for event in range(1, 8):
        ids.seen(event, 0)
    assert ids.ended_early == 2
    assert [ids.seen(event, 0) for event in (4, 5, 6, 7)] == [True] * 4


def test_an_old_event_does_not_turn_the_horizon_back() -> None:
    """A generation that ends since it is full, at an event out of order, must not make the next one end at once."""
    ids = Driven(HORIZON_MS, capacity=2)
    for event, time_ms in ((1, 1000), (2, 1000), (3, 10), (4, 1050)):
        ids.seen(event, time_ms)
    assert ids.seen(2, 1060)


@profile(deadline=None)
@given(STEPS, STEPS)
def test_restored_it_goes_on_like_the_one_that_was_saved(
    before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    ids, restored = (Driven(HORIZON_MS, capacity=4) for _ in range(2))
    now_ms = 0
    for event, step_ms in before:
        now_ms += step_ms
        ids.seen(event, now_ms)
    restored.restore(*ids.save())
    for event, step_ms in after:
        now_ms += step_ms
        assert restored.seen(event, now_ms) == ids.seen(event, now_ms)
    assert restored.ended_early == ids.ended_early
    for name, saved in ids.save()[0].items():
        np.testing.assert_array_equal(restored.save()[0][name], saved)
