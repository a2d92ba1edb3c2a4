"""What each task minimises, as the settings say."""

import numpy as np
import pytest
import torch

from learner.funnel import inverse_propensity_loss, joint_logits
from learner.imbalance import masked_focal
from learner.losses import immediate_logits, masked_bce
from learner.objective import Objective

N = 40
PARENTS = (-1, -1, 1)


def tasks(delay="wait", parent="", **of_purchase):
    return [
        {"name": "content_view"},
        {"name": "click", "window": "30m", "delay": delay},
        {"name": "purchase", "window": "24h", "delay": delay, "parent": parent, **of_purchase},
    ]


@pytest.fixture
def rows():
    """Conditional logits, labels of which a purchase has its click, what to learn, what is final."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(N, 3, generator=generator) < 0.5).float()
    labels[:, 2] *= labels[:, 1]
    learn = torch.rand(N, 3, generator=generator) < 0.7
    final = torch.rand(N, 3, generator=generator) < 0.5
    return torch.randn(N, 3, generator=generator), labels, learn, final


def test_by_default_it_is_plain_cross_entropy(make_settings, rows) -> None:
    logits, labels, learn, final = rows
    objective = Objective(make_settings())
    assert torch.equal(objective(logits, labels, learn, final), masked_bce(logits, labels, learn))
    assert not objective.settling.any()


def test_a_funnel_learns_the_products_through_the_delay_link(make_settings, rows) -> None:
    logits, labels, learn, final = rows
    objective = Objective(make_settings(tasks=tasks("fnc_in_loss", "click")))
    scored = immediate_logits(joint_logits(logits, PARENTS), torch.tensor([False, True, True]))
    torch.testing.assert_close(objective(logits, labels, learn, final), masked_bce(scored, labels, learn))


@pytest.mark.parametrize("of_purchase", [{"positive_weight": 3.0}, {"focal_gamma": 2.0}])
def test_class_weight_and_focal_loss_are_those_of_their_task(make_settings, rows, of_purchase) -> None:
    logits, labels, learn, final = rows
    losses = Objective(make_settings(tasks=tasks(**of_purchase)))(logits, labels, learn, final)
    weights, gammas = torch.ones(3), torch.zeros(3)
    weights[2], gammas[2] = of_purchase.get("positive_weight", 1.0), of_purchase.get("focal_gamma", 0.0)
    torch.testing.assert_close(losses, masked_focal(logits, labels, learn, weights, gammas))
    plain = masked_bce(logits, labels, learn)
    torch.testing.assert_close(losses[:2], plain[:2])
    assert losses[2] != plain[2]


def test_the_propensity_term_uses_final_labels_and_the_parents_as_it_stands(make_settings, rows) -> None:
    """The click's window closed long before: no row says so, but the purchase's holds its label."""
    logits, labels, learn, final = rows
    final[:, 1] = False
    objective = Objective(make_settings(tasks=tasks(parent="click"), train={"inverse_propensity": 0.1}))
    assert objective.settling.tolist() == [False, False, True]
    plain = masked_bce(joint_logits(logits, PARENTS), labels, learn)
    known = final.clone()
    known[:, 1] = final[:, 2]
    term = inverse_propensity_loss(logits, labels, known, PARENTS)
    assert term[2] > 0
    before = final.clone()
    torch.testing.assert_close(objective(logits, labels, learn, final), plain + 0.1 * term)
    assert torch.equal(final, before), "the caller's array was changed"


def test_the_propensity_term_needs_a_funnel(make_settings) -> None:
    assert not Objective(make_settings(train={"inverse_propensity": 0.1})).settling.any()
    np.testing.assert_array_equal(Objective(make_settings(tasks=tasks(parent="click"))).settling, [False] * 3)
