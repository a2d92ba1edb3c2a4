"""Rows under a hard cap: the oldest goes, what is protected stays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from features.directory import Directory, admit, evict, is_full, load_directory, new_directory, save_directory
from features.idmap import find

NOBODY = np.zeros(0, np.int32)


def _filled(n_rows: int, last_ms: list[int]) -> Directory:
    directory = new_directory(n_rows, 1, 1)
    for key, time_ms in enumerate(last_ms, start=1):
        row = admit(directory, key)
        directory.last_ms[row] = time_ms
        directory.attributes[row] = 10 * key
        directory.numbers[row] = key
    return directory


def _ids(directory: Directory) -> set[int]:
    return set(directory.ids[directory.ids != 0].tolist())


def test_the_least_recently_used_rows_go_first() -> None:
    directory = _filled(100, [1000 - abs(500 - 10 * n) for n in range(100)])  # the first and the last are the oldest
    assert is_full(directory)
    evict(directory, NOBODY)
    assert set(range(1, 101)) - _ids(directory) == {1, 2}
    assert directory.counts[1] == 2
    assert not is_full(directory)


def test_among_rows_of_the_same_age_none_stays_that_is_older() -> None:
    directory = _filled(100, [5] * 99 + [4])
    evict(directory, NOBODY)
    assert set(range(1, 101)) - _ids(directory) == {1, 100}


@profile(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=100, max_size=230), st.integers(0, 3))
def test_what_goes_is_the_front_of_a_stable_sort_by_age_and_nothing_else_is_lost(
    rows: list[tuple[int, int]], n_rounds: int
) -> None:
    """Against the definition, over several rounds and whatever is protected."""
    directory = _filled(len(rows), [time_ms for time_ms, _ in rows])
    protected = np.array([is_protected for _, is_protected in rows], np.int32)
    kept = dict(enumerate(directory.ids.tolist()))
    for _ in range(n_rounds):
        may_go = [row for row in kept if not protected[row]]
        for row in sorted(may_go, key=lambda row: rows[row][0])[: len(rows) // 50]:
            del kept[row]
        evict(directory, protected)
    assert {row: key for row, key in enumerate(directory.ids.tolist()) if key} == kept
    gone = set(range(1, len(rows) + 1)) - set(kept.values())
    assert sorted(directory.free[: directory.counts[0]].tolist()) == sorted(key - 1 for key in gone)
    assert all(find(directory.keys, directory.rows, key) == row for row, key in kept.items())
    assert all(find(directory.keys, directory.rows, key) == -1 for key in gone)


def test_protected_rows_stay_however_old() -> None:
    directory = _filled(16, list(range(1, 17)))
    protected = np.array([1, 2, 1] + [0] * 13, np.int32)
    evict(directory, protected)
    assert set(range(1, 17)) - _ids(directory) == {4}


def test_an_evicted_id_is_not_found_and_its_row_comes_back_empty() -> None:
    directory = _filled(16, list(range(1, 17)))
    evict(directory, NOBODY)
    assert find(directory.keys, directory.rows, 1) == -1
    row = admit(directory, 99)
    assert row == 0
    assert find(directory.keys, directory.rows, 99) == row
    assert directory.last_ms[row] == 0
    assert directory.attributes[row].tolist() == [0]
    assert np.isnan(directory.numbers[row]).all()


def test_a_loaded_directory_goes_on_like_the_one_that_was_saved() -> None:
    directory = _filled(16, list(range(16, 0, -1)))
    evict(directory, NOBODY)
    loaded = new_directory(16, 1, 1)
    load_directory(loaded, {name: array.copy() for name, array in save_directory(directory).items()})
    for key in range(100, 140):
        for each in (directory, loaded):
            if is_full(each):
                evict(each, NOBODY)
            each.last_ms[admit(each, key)] = key
    assert _ids(loaded) == _ids(directory)
    for before, after in zip(save_directory(directory).values(), save_directory(loaded).values(), strict=True):
        np.testing.assert_array_equal(after, before)


def test_a_smaller_directory_refuses_what_does_not_fit() -> None:
    with pytest.raises((IndexError, ValueError)):
        load_directory(new_directory(8, 1, 1), save_directory(_filled(16, list(range(1, 17)))))
