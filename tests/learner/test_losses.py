"""Losses over partly known labels, and the base rates."""

import math

import numpy as np
import pytest
import torch

from learner.losses import BaseRates, count_labels, immediate_logits, masked_bce

WAIT = np.zeros(3, np.bool_)


def test_the_loss_is_the_mean_over_the_known_labels_of_each_task() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(9, 3)).astype(np.float32) * 4
    labels = (rng.random((9, 3)) < 0.5).astype(np.float32)
    known = rng.random((9, 3)) < 0.6
    known[:, 2] = False
    expected = []
    for task in range(3):
        losses = []
        for row in range(9):
            if known[row, task]:
                p = 1 / (1 + math.exp(-float(logits[row, task])))
                losses.append(-math.log(p if labels[row, task] else 1 - p))
        expected.append(sum(losses) / len(losses) if losses else 0.0)
    found = masked_bce(torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(known))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_an_unknown_label_touches_neither_loss_nor_gradient_whatever_it_holds() -> None:
    known = torch.tensor([[True], [False]])
    for unknown in (0.0, 1.0, math.nan):
        logits = torch.tensor([[0.5], [2.0]], requires_grad=True)
        loss = masked_bce(logits, torch.tensor([[1.0], [unknown]]), known).sum()
        loss.backward()
        assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5)))
        assert logits.grad[1].item() == 0.0
        assert logits.grad[0].item() == pytest.approx(1 / (1 + math.exp(-0.5)) - 1)


def test_loss_and_gradient_are_those_of_torchs_own_at_any_logit() -> None:
    rng = np.random.default_rng(2)
    values = (rng.normal(size=(500, 3)) * 30).astype(np.float32)
    labels = torch.from_numpy((rng.random((500, 3)) < 0.5).astype(np.float32))
    known = torch.from_numpy(rng.random((500, 3)) < 0.7)
    found, expected = (torch.from_numpy(values.copy()).requires_grad_() for _ in range(2))
    weights = torch.tensor([1.0, 0.5, 3.0])
    (masked_bce(found, labels, known) * weights).sum().backward()
    each = torch.nn.functional.binary_cross_entropy_with_logits(expected, labels, reduction="none") * known
    losses = each.sum(0) / known.sum(0)
    (losses * weights).sum().backward()
    torch.testing.assert_close(masked_bce(found, labels, known), losses)
    torch.testing.assert_close(found.grad, expected.grad)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape; found \(2, 3\), \(2, 3\), \(2, 2\)"):
        masked_bce(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.bool))


def test_base_rates_are_the_share_of_positives_among_the_known() -> None:
    rates = BaseRates(2)
    np.testing.assert_allclose(rates.rates, [0.05, 0.05])
    labels = np.zeros((1000, 2), np.float32)
    labels[:300, 0] = 1
    known = np.ones((1000, 2), np.bool_)
    known[:, 1] = False
    labels[:, 1] = np.nan
    rates.update(*count_labels(labels, known))
    np.testing.assert_allclose(rates.rates, [300.5 / 1010, 0.05])
    np.testing.assert_allclose(torch.sigmoid(rates.logits).numpy(), rates.rates, rtol=1e-6)


def test_base_rates_follow_a_change_and_stay_finite_when_positives_stay_away() -> None:
    rates = BaseRates(1)
    known = np.ones((50_000, 1), np.bool_)
    for _ in range(20):
        rates.update(*count_labels(np.ones((50_000, 1), np.float32), known))
    assert rates.rates[0] > 0.999
    for _ in range(4000):
        rates.update(*count_labels(np.zeros((50_000, 1), np.float32), known))
    assert np.isfinite(rates.logits.numpy()).all()
    assert 0 < rates.rates[0] < 1e-6
    for _ in range(8):
        rates.update(*count_labels(np.ones((50_000, 1), np.float32), known))
    assert rates.rates[0] > 0.8


def test_base_rates_go_on_from_what_they_saved() -> None:
    rng = np.random.default_rng(1)
    straight, resumed = BaseRates(2), BaseRates(2)
    batches = [(rng.random((5, 2)) < 0.5).astype(np.float32) for _ in range(6)]
    known = np.ones((5, 2), np.bool_)
    for labels in batches[:3]:
        straight.update(*count_labels(labels, known))
    resumed.load(straight.save())
    for labels in batches[3:]:
        straight.update(*count_labels(labels, known))
        resumed.update(*count_labels(labels, known))
    np.testing.assert_array_equal(straight.rates, resumed.rates)


def test_a_positive_of_an_example_learned_before_is_no_example_of_its_own() -> None:
    rates = BaseRates(2)
    shown = np.zeros((1000, 2), np.float32)
    rates.update(*count_labels(shown, np.ones((1000, 2), np.bool_)))  # every exposure, at once
    counts = count_labels(np.ones((300, 2), np.float32), np.ones((300, 2), np.bool_))
    rates.update(*counts, np.array([300, 0]))  # the first task's outcomes, later
    np.testing.assert_allclose(rates.rates, [300.5 / 1010, 300.5 / 1310])


def test_the_immediate_link_makes_odds_of_the_stream_the_probability() -> None:
    logits = torch.tensor([[-2.0, -2.0], [0.5, 0.5], [40.0, 40.0]])
    found = immediate_logits(logits, torch.tensor([True, False]))
    torch.testing.assert_close(found[:, 0].exp(), torch.sigmoid(logits[:, 0]))
    torch.testing.assert_close(found[:, 1], logits[:, 1])
    # Of 1,000 exposures and 300 outcomes the stream holds 1,000 negatives and 300 positives: the best p is 0.3.
    logit = torch.tensor([[0.0]], requires_grad=True)
    optimizer = torch.optim.LBFGS([logit], max_iter=50)

    def loss():
        optimizer.zero_grad()
        trained = immediate_logits(logit, torch.tensor([True]))
        yes, no = torch.ones(1, 1), torch.zeros(1, 1)
        known = torch.ones(1, 1, dtype=torch.bool)
        total = 300 * masked_bce(trained, yes, known).sum() + 1000 * masked_bce(trained, no, known).sum()
        total.backward()
        return total

    optimizer.step(loss)
    assert torch.sigmoid(logit).item() == pytest.approx(0.3, rel=1e-3)
