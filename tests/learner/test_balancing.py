"""What every balancing method keeps to, and the numbers of the fixed one."""

import numpy as np
import pytest
import torch

from contracts.components import load, names
from learner.balancing.fixed import Balancing

METHODS = names("learner.balancing")
RATES = np.array([0.3, 0.05, 0.01])


@pytest.fixture(params=METHODS)
def make(request):
    return load("learner.balancing", request.param).Balancing


def total(balancer, losses, counts, rates=RATES):
    return balancer(torch.tensor(losses), torch.tensor(counts), np.asarray(rates))


def test_the_fixed_method_is_found() -> None:
    assert "fixed" in METHODS


def test_every_task_with_labels_gets_a_finite_positive_gradient(make) -> None:
    losses = torch.tensor([0.5, 0.2, 0.1], requires_grad=True)
    make([1.0, 1.0, 1.0])(losses, torch.tensor([5, 5, 1]), RATES).backward()
    assert torch.isfinite(losses.grad).all()
    assert (losses.grad > 0).all()


def test_a_task_without_labels_or_weight_gets_no_gradient(make) -> None:
    losses = torch.tensor([0.5, 0.2, 0.1], requires_grad=True)
    make([1.0, 0.0, 1.0])(losses, torch.tensor([5, 5, 0]), RATES).backward()
    assert losses.grad[0] > 0
    assert losses.grad[1:].tolist() == [0.0, 0.0]


def test_a_batch_without_any_label_costs_nothing(make) -> None:
    assert total(make([1.0, 1.0, 1.0]), [0.0, 0.0, 0.0], [0, 0, 0]).item() == 0.0


def test_extreme_base_rates_stay_finite(make) -> None:
    assert torch.isfinite(total(make([1.0, 1.0]), [0.5, 0.5], [3, 3], [1e-7, 1 - 1e-7]))


def test_the_order_of_tasks_does_not_matter(make) -> None:
    order = [2, 0, 1]
    weights, losses, counts = [1.0, 2.0, 3.0], [0.5, 0.2, 0.1], [7, 5, 3]
    straight = total(make(weights), losses, counts)
    permuted = total(
        make([weights[k] for k in order]), [losses[k] for k in order], [counts[k] for k in order], RATES[order]
    )
    torch.testing.assert_close(straight, permuted)


def test_the_fixed_method_is_the_weighted_sum() -> None:
    assert total(Balancing([1.0, 2.5]), [0.6, 0.2], [8, 8]).item() == pytest.approx(0.6 + 2.5 * 0.2)


def test_a_task_counts_for_as_many_rows_as_it_has() -> None:
    assert total(Balancing([1.0, 1.0]), [0.6, 0.2], [8, 2]).item() == pytest.approx(0.6 + 0.2 * 2 / 8)
