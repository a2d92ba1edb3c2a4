"""What is remembered of users and items: hard bounds, the sampling distribution, the way through a snapshot."""

from collections import Counter
from math import exp, inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from contracts.settings import Settings
from features.profiles import (
    Profiles,
    copy_profiles,
    item_row,
    learn_number,
    load_profiles,
    log_q,
    new_profiles,
    remember,
    sample_item,
    save_profiles,
    uniform,
    user_row,
)
from features.schema import FeatureSchema

SETTINGS = Settings.model_validate(
    {
        "mode": "implicit",
        "features": {"users": 16, "items": 32, "pairs": 1024, "values": 1024, "recent_items": 16, "history_length": 3},
    }
)


def _profiles(settings: Settings = SETTINGS, seed: int = 0, uniform_share: float = 0.8) -> Profiles:
    return new_profiles(settings.features, FeatureSchema.of(settings), uniform_share, seed)


def _see(profiles: Profiles, user: int, item: int, now_ms: int, kind: int = 0) -> None:
    u_row, i_row = user_row(profiles, user, now_ms), item_row(profiles, item, now_ms)
    remember(profiles, user, u_row, item, i_row, kind, now_ms, 0)


def _see_many(profiles: Profiles, n_events: int, seed: int, first_ms: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for n in range(n_events):
        _see(profiles, 1 + int(rng.integers(60)), 1 + int(rng.zipf(1.3)) % 90, first_ms + 10 * n, int(rng.integers(3)))


def _assert_whole(profiles: Profiles) -> None:
    """Map, catalogue, list of known items and recent traffic tell of the same items."""
    known = np.flatnonzero(profiles.items.ids)
    live, recent = profiles.live[: profiles.traffic[0]], profiles.recent[: profiles.traffic[2]]
    assert sorted(live.tolist()) == known.tolist()
    assert set(recent.tolist()) <= set(known.tolist())
    np.testing.assert_array_equal(profiles.recent_count, np.bincount(recent, minlength=len(profiles.items.ids)))
    for directory in (profiles.users, profiles.items):
        rows = np.flatnonzero(directory.ids)
        assert sorted(directory.rows[directory.keys != 0].tolist()) == rows.tolist()
        assert sorted(directory.keys[directory.keys != 0].tolist()) == sorted(directory.ids[rows].tolist())


@profile(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80), st.integers(0, 1000)), max_size=200))
def test_memory_is_bounded_and_stays_whole_whatever_comes(events: list[tuple[int, int, int]]) -> None:
    profiles = _profiles()
    bytes_before = [array.nbytes for array in (*profiles.users, *profiles.items, *profiles.pairs, *profiles.values)]
    for user, item, now_ms in events:
        _see(profiles, user, item, now_ms)
    _assert_whole(profiles)
    bytes_after = [array.nbytes for array in (*profiles.users, *profiles.items, *profiles.pairs, *profiles.values)]
    assert bytes_after == bytes_before
    assert np.count_nonzero(profiles.users.ids) <= 16
    assert profiles.traffic[0] <= 32
    assert np.count_nonzero(profiles.pairs.heads[:, :, 0]) <= 1024


def test_an_item_of_the_recent_traffic_is_not_forgotten() -> None:
    profiles = _profiles()
    for n in range(200):
        _see(profiles, 1, 1000 + n, n)
        recent = profiles.items.ids[profiles.recent[: profiles.traffic[2]]]
        assert recent[-1] != 0
        assert set(range(max(1000, 1000 + n - 15), 1000 + n + 1)) == set(recent.tolist())


def test_history_is_newest_first_by_type_and_repeats_nothing_in_a_row() -> None:
    profiles = _profiles()
    for now_ms, (item, kind) in enumerate([(1, 0), (1, 0), (2, 0), (9, 1), (1, 0), (3, 0)]):
        _see(profiles, 7, item, now_ms, kind)
    assert profiles.history[user_row(profiles, 7, 10)].tolist() == [[3, 1, 2], [9, 0, 0], [0, 0, 0]]


def test_a_user_in_the_row_of_another_inherits_nothing() -> None:
    profiles = _profiles()
    for user in range(1, 17):
        _see(profiles, user, 5, user)
    row = user_row(profiles, 99, 0)
    assert not profiles.history[row].any()
    assert profiles.users.last_ms[row] == 0


@pytest.mark.parametrize("uniform_share", [0.3, 0.8, 1.0])
def test_log_q_is_the_probability_that_an_item_is_sampled(uniform_share: float) -> None:
    profiles = _profiles(seed=1, uniform_share=uniform_share)
    for n in range(40):
        _see(profiles, 1, 1 + min(n % 10, 4 + n % 3), n)
    n_known, n_draws = int(profiles.traffic[0]), 20_000
    probabilities = {row: exp(log_q(profiles, row)) / n_known for row in profiles.live[:n_known].tolist()}
    assert sum(probabilities.values()) == pytest.approx(1)
    drawn = Counter(int(sample_item(profiles)) for _ in range(n_draws))
    assert set(drawn) == set(probabilities)
    for row, p in probabilities.items():
        assert abs(drawn[row] / n_draws - p) < 4.5 * (p * (1 - p) / n_draws) ** 0.5
    assert exp(log_q(profiles, -1)) == pytest.approx(uniform_share)


def test_before_any_traffic_sampling_is_uniform_and_log_q_says_so() -> None:
    profiles = _profiles(uniform_share=0.5)
    row = item_row(profiles, 5, 0)
    assert log_q(profiles, row) == 0
    assert sample_item(profiles) == row


def test_the_two_streams_of_random_numbers_are_uniform_and_apart() -> None:
    random = _profiles(seed=-3).random
    draws = np.array([[uniform(random, stream) for _ in range(2000)] for stream in (0, 1)])
    assert ((draws >= 0) & (draws < 1)).all()
    np.testing.assert_allclose(draws.mean(1), 0.5, atol=0.03)
    np.testing.assert_allclose(draws.var(1), 1 / 12, atol=0.01)
    assert abs(np.corrcoef(draws)[0, 1]) < 0.08
    untouched = random[0]
    uniform(random, 1)
    assert random[0] == untouched


@profile(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32) | st.just(nan), max_size=30))
def test_moments_are_those_of_the_numbers_that_were_known(values: list[float]) -> None:
    moments = np.zeros(3)
    for value in values:
        learn_number(moments, np.float32(value))
    known = np.array([value for value in values if value == value])
    assert moments[0] == len(known)
    if len(known):
        np.testing.assert_allclose(moments[1], known.mean(), rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(moments[2], ((known - known.mean()) ** 2).sum(), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("n_events", [0, 1, 20, 400])
def test_loaded_profiles_go_on_like_those_that_were_saved(n_events: int) -> None:
    profiles, loaded = _profiles(seed=3), _profiles(seed=8)
    _see_many(profiles, n_events, seed=n_events)
    load_profiles(loaded, {name: array.copy() for name, array in save_profiles(profiles).items()})
    _assert_whole(loaded)
    for each in (profiles, loaded):
        _see_many(each, 300, seed=5, first_ms=3_000)
    before, after = save_profiles(profiles), save_profiles(loaded)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert [sample_item(loaded) for _ in range(50)] == [sample_item(profiles) for _ in range(50)]


def _assert_same(found: Profiles, wanted: Profiles) -> None:
    after, before = save_profiles(found), save_profiles(wanted)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@profile(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 120), min_size=1, max_size=5), st.integers(0, 9))
def test_changes_one_after_the_other_give_what_a_whole_save_gives(n_events: list[int], seed: int) -> None:
    """Also where rows and entries change hands in between: there are more users and items than rows."""
    profiles = _profiles()
    _see_many(profiles, 90, seed)
    follower = _profiles(seed=8)
    load_profiles(follower, save_profiles(profiles))
    for number, n in enumerate(n_events):
        _see_many(profiles, n, seed + number, first_ms=10_000 * (number + 1))
        before = copy_profiles(follower)
        moved = copy_profiles(follower)
        load_profiles(moved, save_profiles(profiles, changes=True))
        _assert_whole(moved)
        _assert_same(follower, before)
        follower = moved
    _assert_same(follower, profiles)


def test_changes_are_as_few_as_what_was_touched() -> None:
    profiles = _profiles(Settings())
    _see_many(profiles, 2_000, seed=0)
    save_profiles(profiles)
    _see(profiles, 7, 1000, 10**6)
    changes = save_profiles(profiles, changes=True)
    assert {name: len(changes[f"{name}.row"]) for name in ("users", "items")} == {"users": 1, "items": 1}
    # The user's, the item's and all items' together.
    assert {name: len(changes[f"{name}.entry"]) for name in ("pairs", "values")} == {"pairs": 1, "values": 3}
    assert not len(save_profiles(profiles, changes=True)["users.row"])


def test_a_snapshot_of_the_profiles_is_as_small_as_what_is_known() -> None:
    profiles = _profiles(Settings())
    _see_many(profiles, 10, seed=0)
    assert sum(array.nbytes for array in save_profiles(profiles).values()) < 10_000


def test_profiles_of_another_size_are_refused() -> None:
    profiles = _profiles()
    _see_many(profiles, 400, seed=0)
    smaller = SETTINGS.model_copy(update={"features": SETTINGS.features.model_copy(update={"items": 16})})
    with pytest.raises((ValueError, IndexError)):
        load_profiles(_profiles(smaller), save_profiles(profiles))


def test_a_count_beyond_thirty_two_bits_of_time_keeps_its_order() -> None:
    profiles = _profiles()
    _see(profiles, 1, 1, 1 << 53)
    assert profiles.users.last_ms[user_row(profiles, 1, 0)] == 1 << 53
    assert inf > log_q(profiles, 0) > -inf
