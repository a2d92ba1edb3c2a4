"""The second copy: what changed is taken over, what did not is left alone."""

import numpy as np
import pytest

from learner.shadow import Shadow


def live_arrays(rng, n_rows=200):
    return {
        "weights": rng.normal(size=(n_rows, 5)).astype(np.float32),
        "last_ms": rng.integers(0, 9, n_rows),
        "history": rng.integers(0, 9, (n_rows, 2, 3)),
        "nothing": np.zeros((n_rows, 0), np.int64),
    }


@pytest.mark.parametrize("n_changed", [0, 1, 7, 150])
def test_after_a_sync_the_copy_is_equal_and_the_marks_are_gone(n_changed) -> None:
    rng = np.random.default_rng(0)
    live, shadow = live_arrays(rng), Shadow()
    changed = np.zeros(200, np.bool_)
    shadow.sync(live, changed, 200)
    for _ in range(3):
        rows = rng.choice(200, n_changed, replace=False)
        before = {name: array.copy() for name, array in shadow.arrays.items()}
        for array in live.values():
            array[rows] += 1
        changed[rows] = True
        for name, array in shadow.arrays.items():
            np.testing.assert_array_equal(array, before[name])
        shadow.sync(live, changed, 200)
        assert not changed.any()
        for name, array in live.items():
            np.testing.assert_array_equal(shadow.arrays[name], array, strict=True)


def test_of_a_few_changed_rows_only_these_are_copied() -> None:
    live, shadow = live_arrays(np.random.default_rng(0)), Shadow()
    changed = np.zeros(200, np.bool_)
    shadow.sync(live, changed, 200)
    live["weights"][:] = 7.0
    changed[[3, 5]] = True
    shadow.sync(live, changed, 200)
    assert np.flatnonzero((shadow.arrays["weights"] == 7.0).all(1)).tolist() == [3, 5]


def test_rows_beyond_those_in_use_keep_their_marks() -> None:
    live, shadow = live_arrays(np.random.default_rng(0)), Shadow()
    changed = np.zeros(200, np.bool_)
    shadow.sync(live, changed, 100)
    changed[[50, 150]] = True
    shadow.sync(live, changed, 100)
    assert np.flatnonzero(changed).tolist() == [150]


def test_arrays_that_grew_are_copied_whole() -> None:
    shadow = Shadow()
    for n_rows in (100, 200):
        live = live_arrays(np.random.default_rng(n_rows), n_rows)
        shadow.sync(live, np.zeros(n_rows, np.bool_), n_rows)
        for name, array in live.items():
            np.testing.assert_array_equal(shadow.arrays[name], array, strict=True)
