"""The short polynomials against the C library."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from features.fastmath import exp2, log, log1p


@njit
def _log(values: np.ndarray) -> np.ndarray:
    return np.array([log(value) for value in values])


@njit
def _log1p(values: np.ndarray) -> np.ndarray:
    return np.array([log1p(value) for value in values])


@njit
def _exp2(values: np.ndarray) -> np.ndarray:
    return np.array([exp2(value) for value in values])


def test_log1p_is_within_a_millionth_over_all_counts_and_elapsed_times() -> None:
    values = np.concatenate([[0.0], np.logspace(-12, 11, 100_000)])
    exact = np.log1p(values)
    np.testing.assert_allclose(_log1p(values), exact, atol=1e-6, rtol=2e-7)
    assert _log1p(values)[0] == 0.0


def test_log_is_within_a_millionth_over_all_odds() -> None:
    values = np.logspace(-37, 37, 100_000)
    np.testing.assert_allclose(_log(values), np.log(values), atol=1e-6, rtol=1e-6)
    assert _log(np.array([1.0]))[0] == 0.0


def test_exp2_is_within_a_hundred_thousandth_down_to_the_smallest_float() -> None:
    values = -np.concatenate([[0.0], np.logspace(-9, np.log10(125.9), 100_000), np.arange(0, 125.5, 0.5)])
    np.testing.assert_allclose(_exp2(values), np.exp2(values), rtol=1e-5)
    assert _exp2(np.array([0.0, -1.0, -2.0, -200.0, -1e30])).tolist() == [1.0, 0.5, 0.25, 0.0, 0.0]


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_a_larger_count_never_looks_smaller(left: float, right: float) -> None:
    low, high = sorted((left, right))
    smaller, larger = _log1p(np.array([low, high]))
    assert smaller <= larger or math.isclose(smaller, larger, abs_tol=1e-6)
