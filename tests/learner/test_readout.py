"""From residuals to what is served: base rate, funnel, calibration."""

import numpy as np
import pytest
import torch

from learner.models._readout import Readout

CALIBRATED = {"calibration": True}
FUNNEL = [
    {"name": "content_view"},
    {"name": "click", "window": "30m"},
    {"name": "purchase", "window": "24h", "parent": "click"},
]


def taught(settings, shift=1.5):
    """A readout whose rates are 0.5, 0.2 and 0.05, and whose outcomes turned out likelier than their logits say."""
    readout, rng = Readout(settings), np.random.default_rng(0)
    readout.base_rates.update(np.full(3, 10_000), np.array([5000, 2000, 500]))
    for _ in range(200):
        raw = rng.normal(-2.0, 1.0, 256).astype(np.float32)
        for task in readout.calibrated:
            labels = (rng.random(256) < 1 / (1 + np.exp(-raw - shift * task))).astype(np.float32)
            readout.platt.update(task, raw, labels)
    return readout


def residuals(n=64):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0))


def test_a_sampled_tasks_logit_takes_log_q_back_and_an_outcomes_takes_its_base_rate(make_settings) -> None:
    readout = Readout(make_settings())
    readout.base_rates.update(np.full(3, 10_000), np.array([5000, 2000, 500]))
    residual, log_q = torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]), np.array([0.5, -0.5], np.float32)
    base = readout.base_rates.logits.numpy()
    expected = [[1.5, 2.0 + base[1], 3.0 + base[2]], [2.5, 4.0 + base[1], 5.0 + base[2]]]
    np.testing.assert_allclose(readout.comparable(residual, log_q), expected, rtol=1e-6)


def test_without_a_residual_each_stage_stands_at_its_base_rate(make_settings) -> None:
    readout = Readout(make_settings(tasks=FUNNEL))
    readout.base_rates.update(np.full(3, 10_000), np.array([5000, 2000, 500]))
    p = readout.raw(readout.conditional(torch.zeros(1, 3))).sigmoid()[0]
    np.testing.assert_allclose(p, readout.base_rates.rates, rtol=1e-5)


def test_what_is_served_is_monotone_along_the_funnel_however_each_stage_is_calibrated(make_settings) -> None:
    readout = taught(make_settings(tasks=FUNNEL, train=CALIBRATED))
    raw = readout.raw(readout.conditional(residuals(500)))
    assert (raw[:, 2] <= raw[:, 1]).all()
    each = readout.platt.logits(raw.numpy())
    assert (each[:, 2] > each[:, 1]).any(), "calibration did not break the order, so this shows nothing"
    for served in (readout.served(raw.numpy()), readout.comparable(residuals(500), np.zeros(500, np.float32))):
        assert (served[:, 2] <= served[:, 1]).all()
        np.testing.assert_allclose(served[:, 1], each[:, 1], rtol=1e-5)


def test_outcomes_are_calibrated_and_tasks_with_sampled_items_are_not(make_settings) -> None:
    readout = taught(make_settings(train=CALIBRATED))
    assert readout.calibrated == [1, 2]
    served = readout.served(residuals().numpy())
    np.testing.assert_array_equal(served[:, 0], residuals().numpy()[:, 0])
    assert (served[:, 1] > residuals().numpy()[:, 1] + 1).mean() > 0.5
    assert Readout(make_settings(mode="implicit", train=CALIBRATED)).calibrated == []


def test_calibration_begins_when_the_first_200_positives_have_been_seen(make_settings) -> None:
    readout, raw = Readout(make_settings(train=CALIBRATED)), np.zeros((100, 3), np.float32)
    everything = np.ones((100, 3), np.bool_)
    readout.calibrate(raw, np.ones((100, 3), np.float32), everything)
    resumed = Readout(make_settings(train=CALIBRATED))
    resumed.load(readout.save())
    np.testing.assert_array_equal(resumed.platt.shifts, [0, 0, 0])
    resumed.calibrate(raw, np.ones((100, 3), np.float32), everything)
    assert (resumed.platt.shifts[1:] > 0.1).all()


@pytest.mark.parametrize("calibration", [True, False])
def test_what_was_calibrated_is_loaded_only_where_calibration_is_on(make_settings, calibration) -> None:
    before = taught(make_settings(train=CALIBRATED))
    loaded = Readout(make_settings(train={"calibration": calibration}))
    loaded.load(before.save())
    raw = residuals().numpy()
    expected = before.served(raw) if calibration else raw
    np.testing.assert_array_equal(loaded.served(raw), expected)
    np.testing.assert_array_equal(loaded.save()["calibration"]["theta"][0], [1.0, 0.0])
