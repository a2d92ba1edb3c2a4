"""Probabilities along a funnel: products, in log space, over the entire space."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.funnel import ROOT, conditional_base, inverse_propensity_loss, joint_logits, log_probabilities
from learner.losses import masked_bce

# Two funnels, one of them named child first: 2 → 0 → 3, with 4 beside 3, and 1 alone.
PARENTS = (2, ROOT, ROOT, 0, 0)
PATHS = {0: (2, 0), 1: (1,), 2: (2,), 3: (2, 0, 3), 4: (2, 0, 4)}


def conditional(n=40, spread=3.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, len(PARENTS), generator=generator, dtype=dtype) * spread


def test_a_stages_probability_is_the_product_along_its_path() -> None:
    logits = conditional()
    log_p, log_not_p = log_probabilities(logits, PARENTS)
    for task, path in PATHS.items():
        product = logits[:, list(path)].sigmoid().prod(1)
        torch.testing.assert_close(log_p[:, task].exp(), product)
        torch.testing.assert_close(log_not_p[:, task].exp(), 1 - product)
        torch.testing.assert_close(joint_logits(logits, PARENTS)[:, task], torch.logit(product))


def test_gradients_are_those_of_the_direct_product() -> None:
    logits = conditional(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: log_probabilities(z, PARENTS), logits)
    assert torch.autograd.gradcheck(lambda z: joint_logits(z, PARENTS), logits)
    direct = torch.logit(torch.stack([logits[:, list(PATHS[t])].sigmoid().prod(1) for t in range(5)], 1))
    by_product = torch.autograd.grad((direct**2).sum(), logits)[0]
    found = torch.autograd.grad((joint_logits(logits, PARENTS) ** 2).sum(), logits)[0]
    torch.testing.assert_close(found, by_product)


@given(st.lists(st.floats(-300, 300, width=32), min_size=5, max_size=5))
def test_a_stage_is_never_more_likely_than_its_parent_and_nothing_overflows(values) -> None:
    logits = torch.tensor([values], requires_grad=True)
    found = joint_logits(logits, PARENTS)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(logits.grad).all()
    log_p, _ = log_probabilities(logits.detach(), PARENTS)
    for task, parent in enumerate(PARENTS):
        if parent != ROOT:
            assert log_p[0, task] <= log_p[0, parent]
            assert found[0, task] <= found[0, parent] + 1e-6 * found[0, parent].abs()


def test_what_a_float32_cannot_tell_from_one_is_still_told() -> None:
    found = joint_logits(torch.tensor([[30.0, 31.0]]), (ROOT, 0))
    assert found[0, 1].item() == pytest.approx(-math.log(math.exp(-30) + math.exp(-31)), rel=1e-6)


def test_without_a_funnel_logits_are_left_alone() -> None:
    logits = conditional()
    assert joint_logits(logits, (ROOT,) * 5) is logits


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cycle among the tasks \[0, 1\]"):
        joint_logits(torch.zeros(2, 3), (1, 0, ROOT))


def test_every_stage_starts_at_its_base_rate() -> None:
    rates = np.array([0.1, 0.7, 0.3, 0.02, 0.0004])
    base = torch.from_numpy(conditional_base(rates, PARENTS)).expand(3, -1)
    torch.testing.assert_close(
        joint_logits(base, PARENTS).sigmoid().double(), torch.from_numpy(rates).expand(3, -1), rtol=1e-5, atol=0
    )


def test_a_stage_that_outnumbers_its_parent_starts_just_below_it() -> None:
    base = conditional_base(np.array([0.1, 0.2]), (ROOT, 0))
    assert 1 / (1 + math.exp(-base[1])) == pytest.approx(0.99)


def test_the_loss_of_a_stage_reaches_its_parents_tower_and_counts_known_labels_only() -> None:
    logits = conditional(8, dtype=torch.float32).requires_grad_()
    labels, known = torch.ones(8, 5), torch.zeros(8, 5, dtype=torch.bool)
    known[:4, 3] = True
    masked_bce(joint_logits(logits, PARENTS), labels, known).sum().backward()
    touched = logits.grad != 0
    assert touched[:4].all(0).tolist() == [True, False, True, True, False]
    assert not touched[4:].any()


def test_a_conditional_learned_over_the_entire_space_is_free_of_the_selection() -> None:
    """Clicks and purchases share a cause; the clicked rows alone would tell too high a purchase rate."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=200_000)
    p_click, p_purchase = 1 / (1 + np.exp(-(x - 1))), 1 / (1 + np.exp(-(x - 2)))
    clicks = rng.random(len(x)) < p_click
    labels = np.stack([clicks, clicks & (rng.random(len(x)) < p_purchase)], 1)
    weights = torch.zeros(2, 2, requires_grad=True)
    features = torch.from_numpy(np.stack([x, np.ones_like(x)], 1)).float()
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")
    everywhere = torch.ones(labels.shape, dtype=torch.bool)

    def closure():
        optimizer.zero_grad()
        logits = joint_logits(features @ weights, (ROOT, 0))
        loss = masked_bce(logits, torch.from_numpy(labels).float(), everywhere).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose(weights.detach().numpy(), [[1, 1], [-1, -2]], atol=0.05)


def test_the_propensity_term_is_the_clicked_rows_loss_over_their_propensity() -> None:
    logits = torch.tensor([[0.0, 1.0], [-6.0, 1.0], [0.0, 1.0], [0.0, 1.0]], requires_grad=True)
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    known = torch.tensor([[True, True], [True, True], [True, True], [False, True]])
    found = inverse_propensity_loss(logits, labels, known, (ROOT, 0))
    # A row with P(click) ½; one below the clip, 1/20; one not clicked; one whose click is not known.
    expected = (2 * math.log1p(math.exp(-1)) + 20 * math.log1p(math.exp(1))) / 3
    assert found.tolist() == [0.0, pytest.approx(expected, rel=1e-5)]
    found.sum().backward()
    assert logits.grad[:, 0].tolist() == [0.0] * 4, "the propensity is no way out"
    assert (logits.grad[:, 1] != 0).tolist() == [True, True, False, False]


def test_the_propensity_term_of_a_batch_without_labels_is_zero() -> None:
    found = inverse_propensity_loss(conditional(4), torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.bool), PARENTS)
    assert found.tolist() == [0.0] * 5
