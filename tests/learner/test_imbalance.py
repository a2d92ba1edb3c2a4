"""Class weight and focal loss: what they do to the loss, and that probabilities stay what they say."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.imbalance import focal_inverse, focal_map, masked_focal
from learner.losses import immediate_logits, masked_bce


def one(value, dtype=torch.float32):
    return torch.tensor([value], dtype=dtype)


def fitted(weight, gamma, true=(1.5, -3.0), n=100_000, seed=0, quadratic=0.0, immediate=False):
    """A logistic model of one number fitted by the loss, the probabilities it gives, and the true ones."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    p = 1 / (1 + np.exp(-(true[0] * x + true[1] + quadratic * x * x)))
    labels = (rng.random(n) < p).astype(np.float32)
    if immediate:  # a negative for every row, and one positive more for those with an outcome
        x, p = np.concatenate([x, x[labels > 0]]), np.concatenate([p, p[labels > 0]])
        labels = np.concatenate([np.zeros(n, np.float32), np.ones(len(x) - n, np.float32)])
    features = torch.from_numpy(np.stack([x, np.ones_like(x)], 1)).double()
    weights = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")
    target, known = torch.from_numpy(labels)[:, None].double(), torch.ones(len(x), 1, dtype=torch.bool)

    def closure():
        optimizer.zero_grad()
        logits = immediate_logits(features @ weights, torch.tensor([immediate]))
        loss = masked_focal(logits, target, known, one(weight).double(), one(gamma).double()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()[:, 0].numpy(), (features @ weights.detach())[:n].sigmoid().numpy()[:, 0], p[:n]


@pytest.mark.parametrize(("weight", "gamma"), [(1, 0), (20, 0), (0.2, 0), (1, 2), (1, 0.5), (20, 2)])
def test_a_model_that_can_be_right_is_calibrated_under_any_weight_and_focus(weight, gamma) -> None:
    weights, predicted, true = fitted(weight, gamma)
    np.testing.assert_allclose(weights, [1.5, -3.0], atol=0.1)
    assert predicted.sum() / true.sum() == pytest.approx(1, abs=0.025)
    order = np.argsort(predicted)
    for tenth in np.array_split(order, 10):
        assert predicted[tenth].sum() / true[tenth].sum() == pytest.approx(1, abs=0.15)


def test_the_delay_link_keeps_its_meaning_under_a_class_weight() -> None:
    weights, predicted, true = fitted(10, 0, immediate=True)
    np.testing.assert_allclose(weights, [1.5, -3.0], atol=0.1)
    assert predicted.sum() / true.sum() == pytest.approx(1, abs=0.03)


def test_without_the_correction_probabilities_would_be_off_by_far() -> None:
    """The test above can fail: the same weight as torch applies it."""
    z = torch.zeros(1, requires_grad=True)
    labels = (torch.arange(1000) < 50).float()
    optimizer = torch.optim.LBFGS([z], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z.expand(1000), labels, pos_weight=one(20.0))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert z.sigmoid().item() > 0.5


def test_a_model_that_cannot_be_right_trades_its_mean_for_the_positives() -> None:
    """What the docstring warns of: plain cross-entropy keeps Σp = Σy there, a class weight does not."""
    _, plain, true = fitted(1, 0, quadratic=0.8)
    _, weighted, _ = fitted(20, 0, quadratic=0.8)
    assert plain.sum() / true.sum() == pytest.approx(1, abs=0.02)
    assert abs(weighted.sum() / true.sum() - 1) > 0.05


def test_weight_one_and_no_focus_is_the_plain_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 3, generator=generator) * 4
    labels, known = (torch.rand(50, 3, generator=generator) < 0.3).float(), torch.rand(50, 3, generator=generator) < 0.7
    known[:, 2] = False
    found = masked_focal(logits, labels, known, torch.ones(3), torch.zeros(3))
    torch.testing.assert_close(found, masked_bce(logits, labels, known))
    assert found[2].item() == 0.0


def test_an_unknown_label_touches_neither_loss_nor_gradient_whatever_it_holds() -> None:
    logits = torch.tensor([[0.5], [2.0]], requires_grad=True)
    labels, known = torch.tensor([[1.0], [math.nan]]), torch.tensor([[True], [False]])
    loss = masked_focal(logits, labels, known, one(5.0), one(2.0)).sum()
    loss.backward()
    assert math.isfinite(loss.item())
    assert logits.grad[0].item() != 0.0
    assert logits.grad[1].item() == 0.0


def test_the_loss_at_the_training_logit_is_the_published_one() -> None:
    trained = torch.tensor([[1.2], [-0.4]])
    gamma, weight = one(2.0), one(3.0)
    served = focal_map(trained, gamma) - weight.log()
    labels, known = torch.tensor([[1.0], [0.0]]), torch.ones(2, 1, dtype=torch.bool)
    q = trained.sigmoid()[:, 0].tolist()
    expected = (-3 * (1 - q[0]) ** 2 * math.log(q[0]) - q[1] ** 2 * math.log(1 - q[1])) / 2
    assert masked_focal(served, labels, known, weight, gamma).item() == pytest.approx(expected, rel=1e-5)


def test_the_map_is_the_closed_form_of_the_paper() -> None:
    for gamma in (0.5, 1.0, 2.0, 5.0):
        q = np.linspace(0.01, 0.99, 50)
        phi = (1 - q) ** gamma - gamma * (1 - q) ** (gamma - 1) * q * np.log(q)
        h = q / phi
        recovered = h / (h + h[::-1])  # 1 − q runs backwards
        logits = torch.from_numpy(np.log(q / (1 - q)))[:, None]
        np.testing.assert_allclose(focal_map(logits, one(gamma, torch.float64)).sigmoid()[:, 0], recovered, rtol=1e-9)


@given(st.floats(-60, 60, width=32), st.floats(0, 5, width=32))
def test_the_inverse_undoes_the_map(logit, gamma) -> None:
    served = one(logit)[:, None]
    torch.testing.assert_close(focal_map(focal_inverse(served, one(gamma)), one(gamma)), served, rtol=1e-4, atol=1e-4)


def test_the_inverses_gradient_is_right() -> None:
    logits = torch.linspace(-8, 8, 12, dtype=torch.float64)[:, None].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: focal_inverse(z, one(2.0, torch.float64)), logits)
