"""What every drift detector must do, whichever there are."""

import math

import msgspec
import numpy as np
import pytest

from contracts.components import load, names

PACKAGE = "learner.drift"


@pytest.fixture(params=names(PACKAGE))
def make(request):
    return load(PACKAGE, request.param).Detector


def losses(n, mean, seed=0, deviation=0.05):
    """Mean log-losses of mini-batches."""
    return (np.random.default_rng(seed).normal(size=n) * deviation + mean).tolist()


def fed(detector, values):
    return [step for step, value in enumerate(values) if detector.update(value)]


def test_there_are_detectors_to_test():
    assert {"adwin", "page_hinkley"} <= set(names(PACKAGE))


@pytest.mark.parametrize(("before", "after"), [(0.3, 0.6), (0.6, 0.3)])
def test_a_step_of_the_loss_is_found_after_it_happened(make, before, after):
    detector = make()
    found = fed(detector, losses(2000, before) + losses(1000, after, seed=1))
    assert found
    assert found[0] >= 2000
    assert detector.n_detections == len(found)


def test_a_stationary_loss_almost_never_alarms(make):
    alarms = sum(len(fed(make(), losses(5000, 0.4, seed))) for seed in range(10))
    assert alarms <= 1


def test_a_restored_detector_goes_on_exactly_where_the_old_one_stood(make):
    values = losses(700, 0.3) + losses(700, 0.7, seed=1) + losses(700, 0.3, seed=2)
    straight = make()
    expected = fed(straight, values)
    assert expected
    for pause in (0, 1, 33, 700, *(step + 1 for step in expected), 2000):
        before = make()
        found = fed(before, values[:pause])
        saved = msgspec.msgpack.decode(msgspec.msgpack.encode(before.state()))
        after = make()
        after.restore(saved)
        assert after.n_detections == len(found)
        found += [pause + step for step in fed(after, values[pause:])]
        assert found == expected
        assert after.state() == straight.state()


def test_a_non_finite_loss_changes_nothing(make):
    detector = make()
    fed(detector, losses(100, 0.4))
    before = detector.state()
    assert not any(detector.update(value) for value in (math.nan, math.inf, -math.inf))
    assert detector.state() == before


def test_a_state_of_something_else_is_refused_and_leaves_the_detector_as_it_was(make):
    detector = make()
    fed(detector, losses(500, 0.4))
    before = detector.state()
    for name, value in before.items():
        for wrong in ({key: kept for key, kept in before.items() if key != name}, {**before, name: "text"}):
            with pytest.raises(ValueError, match=name):
                detector.restore(wrong)
        if isinstance(value, bytes):
            for damaged in (b"", value[:-9], value + b"\0"):
                with pytest.raises(ValueError, match="cannot be read"):
                    detector.restore({**before, name: damaged})
    assert detector.state() == before
