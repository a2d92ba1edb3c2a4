"""Absurd numbers take nothing from the sound ones beside them."""

import math

import numpy as np
import pytest

from contracts.settings import FieldSpec
from features.profiles import learn_number
from features.schema import AttributeReader

PRICE = FieldSpec(source="item.price", kind="numeric")


def moments_of(numbers):
    moments = np.zeros(3)
    for number in numbers:
        learn_number(moments, number)
    return moments[1], math.sqrt(moments[2] / moments[0])


@pytest.mark.parametrize("absurd", [1e17, -1e17, 1e6])
@pytest.mark.parametrize("share", [0.001, 0.03])
def test_up_to_one_absurd_number_in_twenty_five_leaves_mean_and_spread_bounded(absurd, share):
    rng = np.random.default_rng(0)
    numbers = rng.normal(50, 10, 20_000)
    numbers[(rng.random(20_000) < share) & (np.arange(20_000) > 100)] = absurd
    mean, spread = moments_of(numbers)
    assert abs(mean - 50) < 15
    assert 9 < spread < 30


def test_a_level_that_really_changes_is_followed():
    mean, spread = moments_of([*np.random.default_rng(0).normal(0, 1, 1000), *[1000.0] * 4000])
    assert mean > 500
    assert spread > 100


def test_numbers_without_outliers_have_their_plain_mean_and_spread():
    numbers = np.random.default_rng(0).uniform(0, 1, 1000)
    assert moments_of(numbers) == pytest.approx((numbers.mean(), numbers.std()))


@pytest.mark.parametrize("value", [1e30, -1e30, 10**40, None, "", "12", math.inf, math.nan])
def test_what_no_attribute_measures_is_unknown(value):
    assert math.isnan(AttributeReader((PRICE,))({"price": value})[1][0])
