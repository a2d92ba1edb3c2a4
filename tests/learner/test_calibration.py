"""Online Platt scaling: it leaves what is calibrated alone, repairs what is not, and follows what changes."""

import math

import numpy as np
import pytest

from learner.calibration import OnlinePlatt

BATCH = 512


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_loss(logits, labels):
    return float(np.logaddexp(0, logits).sum() - (labels * logits).sum())


def stream(rate, n, seed, clump=0):
    """True logits around a base rate, and labels; with a clump, an unseen effect that so many rows in turn share."""
    rng = np.random.default_rng(seed)
    logits = math.log(rate / (1 - rate)) + rng.normal(size=n)
    unseen = np.repeat(rng.normal(size=n // clump + 1) * 0.5, clump)[:n] if clump else 0.0
    return logits, (rng.random(n) < sigmoid(logits + unseen)).astype(np.float32)


def prequential(raw, labels, calibrator=None):
    """The calibrated logits, each before its label was learned."""
    calibrator = calibrator or OnlinePlatt(1)
    calibrated = np.empty(len(raw))
    for start in range(0, len(raw), BATCH):
        part = slice(start, start + BATCH)
        batch = raw[part].astype(np.float32)
        calibrated[part] = calibrator.logits(batch[:, None])[:, 0]
        calibrator.update(0, batch, labels[part])
    return calibrated


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rate", "n"), [(0.3, 50_000), (0.05, 100_000), (0.005, 400_000)])
def test_a_calibrated_model_loses_less_than_a_tenth_of_a_percent(rate, n, seed) -> None:
    logits, labels = stream(rate, n, seed)
    assert log_loss(prequential(logits, labels), labels) / log_loss(logits, labels) - 1 < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_batches_whose_rows_share_an_unseen_effect_do_not_make_it_oscillate(seed) -> None:
    logits, labels = stream(0.3, 100_000, seed, clump=BATCH)
    assert log_loss(prequential(logits, labels), labels) / log_loss(logits, labels) - 1 < 2e-3


@pytest.mark.parametrize(("rate", "shift"), [(0.3, 0.7), (0.02, -1.0)])
def test_on_a_stream_of_early_negatives_and_late_positives_it_finds_the_probabilities_all_the_same(rate, shift) -> None:
    """Each exposure at once as a negative, its outcome five batches later as one positive more, scored alike."""
    logits, labels = stream(rate, 200_000, 0)
    raw = (1.3 * logits + shift).astype(np.float32)
    calibrator, calibrated = OnlinePlatt(1), np.empty(len(raw))
    late = [np.zeros(0, np.int64)] * 5
    for start in range(0, len(raw), BATCH):
        now = np.arange(start, min(start + BATCH, len(raw)))
        calibrated[now] = calibrator.logits(raw[now][:, None])[:, 0]
        positives, late = late[0], [*late[1:], now[labels[now] > 0]]
        told = np.concatenate([np.zeros(len(now)), np.ones(len(positives))]).astype(np.float32)
        calibrator.update(0, raw[np.concatenate([now, positives])], told, 1.0)
    half = slice(len(raw) // 2, None)
    assert log_loss(calibrated[half], labels[half]) / log_loss(logits[half], labels[half]) - 1 < 2e-3
    assert sigmoid(calibrated[half]).sum() / labels[half].sum() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.0), (0.5, 0.0), (1.0, 1.0), (1.0, -1.0), (1.0, -4.0), (2.0, 1.0)])
def test_a_model_off_by_scale_or_shift_is_calibrated_within_a_percent(scale, shift, seed) -> None:
    logits, labels = stream(0.2, 200_000, seed)
    raw = scale * logits + shift
    calibrator = OnlinePlatt(1)
    prequential(raw[:100_000], labels[:100_000], calibrator)
    rest = slice(100_000, None)
    found = prequential(raw[rest], labels[rest], calibrator)
    assert sigmoid(found).sum() / sigmoid(logits[rest]).sum() == pytest.approx(1, abs=0.01)
    assert log_loss(found, labels[rest]) / log_loss(logits[rest], labels[rest]) - 1 < 1e-3
    assert calibrator.slopes[0] == pytest.approx(1 / scale, rel=0.1)
    assert calibrator.shifts[0] == pytest.approx(-shift / scale, abs=0.3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_a_settled_calibration_follows_an_abrupt_shift(shift, seed) -> None:
    logits, labels = stream(0.1, 300_000, seed)
    raw = logits.copy()
    raw[100_000:] += shift
    found = prequential(raw, labels)
    late = slice(200_000, None)
    assert sigmoid(found[late]).sum() / sigmoid(logits[late]).sum() == pytest.approx(1, abs=0.02)


def test_a_reset_task_starts_again_and_leaves_the_others_alone() -> None:
    logits, labels = stream(0.1, 20_000, 0)
    calibrator = OnlinePlatt(2)
    for task in (0, 1):
        calibrator.update(task, (logits + 1).astype(np.float32), labels)
    other = (calibrator.slopes[1], calibrator.shifts[1])
    calibrator.reset(0)
    assert (calibrator.slopes[0], calibrator.shifts[0]) == (1.0, 0.0)
    assert (calibrator.slopes[1], calibrator.shifts[1]) == other
    fresh = OnlinePlatt(1)
    np.testing.assert_array_equal(
        prequential(logits, labels, calibrator_of(calibrator)), prequential(logits, labels, fresh)
    )


def calibrator_of(calibrator):
    """Its first task alone."""
    one = OnlinePlatt(1)
    one.load({name: array[:1] for name, array in calibrator.save().items()})
    return one


def test_a_loaded_state_goes_on_bit_for_bit() -> None:
    logits, labels = stream(0.1, 40_000, 0)
    straight = OnlinePlatt(1)
    prequential(2 * logits[:20_000], labels[:20_000], straight)
    resumed = OnlinePlatt(1)
    resumed.load({name: array.copy() for name, array in straight.save().items()})
    rest = slice(20_000, None)
    np.testing.assert_array_equal(
        prequential(2 * logits[rest], labels[rest], straight), prequential(2 * logits[rest], labels[rest], resumed)
    )


def test_a_state_of_other_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holds `theta` of shape \(3, 2\); found shape \(2, 2\)"):
        OnlinePlatt(3).load(OnlinePlatt(2).save())
    with pytest.raises(ValueError, match="found nothing"):
        OnlinePlatt(3).load({})


def test_the_first_step_is_newtons() -> None:
    calibrator = OnlinePlatt(1)
    calibrator.update(0, np.array([1.0, -1.0], np.float32), np.array([1.0, 1.0], np.float32))
    p = sigmoid(np.array([1.0, -1.0]))
    z = np.array([[1.0, 1.0], [-1.0, 1.0]])
    score = z.T @ (p - 1)
    matrix = 25.0 * np.eye(2) + z.T @ np.diag((p - 1) ** 2) @ z
    expected = np.array([1.0, 0.0]) - np.linalg.solve(matrix, score)
    np.testing.assert_allclose([calibrator.slopes[0], calibrator.shifts[0]], expected, rtol=1e-6)


def test_the_slope_stays_within_its_bounds_so_that_the_order_stays() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(size=50_000).astype(np.float32)
    calibrator = OnlinePlatt(1)
    prequential(raw, (rng.random(len(raw)) < sigmoid(-raw)).astype(np.float32), calibrator)
    assert calibrator.slopes[0] == pytest.approx(0.2)
    prequential(raw, (raw > 0).astype(np.float32), calibrator)
    assert 1.0 < calibrator.slopes[0] <= 5.0
    ordered = np.sort(raw)[:, None]
    assert (np.diff(calibrator.logits(ordered), axis=0) >= 0).all()


def test_scores_without_any_spread_and_labels_without_any_logit_do_no_harm() -> None:
    calibrator = OnlinePlatt(1)
    for _ in range(500):
        calibrator.update(0, np.full(64, -3.0, np.float32), np.zeros(64, np.float32))
        calibrator.update(0, np.array([np.nan, np.inf], np.float32), np.ones(2, np.float32))
        calibrator.update(0, np.zeros(0, np.float32), np.zeros(0, np.float32))
    assert np.isfinite(calibrator.logits(np.array([[-3.0]], np.float32))).all()
    assert calibrator.logits(np.array([[-3.0]], np.float32))[0, 0] < -4
