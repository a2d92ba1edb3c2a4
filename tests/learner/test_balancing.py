"""What every balancing method keeps to, and the numbers of each on a case small enough for pencil and paper."""

import importlib.util
import math
import sys

import numpy as np
import pytest
import torch

from contracts.components import load, names
from learner.balancing import dwa, entropy, famo, fixed, gradnorm, pcgrad, uncertainty, upgrad
from learner.balancing._cosine import task_gradient_cosines

METHODS = names("learner.balancing")
NEED_TORCHJD = {"pcgrad", "upgrad"}
RATES = np.array([0.3, 0.05, 0.01])
DIRECTIONS = torch.tensor([[1.0, 0.0, 0.0], [-0.5, 0.8, 0.0], [0.0, 0.0, 0.7]])
"""Gradients of three tasks: the first two conflict, the third has nothing to do with them."""

needs_torchjd = pytest.mark.skipif(
    importlib.util.find_spec("torchjd") is None, reason="needs the extra: pip install 'anabranch[torchjd]'"
)


@pytest.fixture(params=[pytest.param(name, marks=needs_torchjd if name in NEED_TORCHJD else ()) for name in METHODS])
def make(request):
    return load("learner.balancing", request.param).Balancing


def batch(levels, directions=DIRECTIONS):
    """Losses of the given values, and the shared representation that they are functions of."""
    shared = torch.zeros(3, requires_grad=True)
    return directions[: len(levels)] @ shared + torch.tensor(levels), shared


def total(balancer, levels, counts, rates=RATES, directions=DIRECTIONS):
    losses, shared = batch(levels, directions)
    return balancer(losses, torch.tensor(counts), np.asarray(rates)[: len(levels)], shared)


def weights(balancer, levels, counts, rates=RATES):
    """What the losses are multiplied by."""
    losses, shared = batch(levels)
    return torch.autograd.grad(balancer(losses, torch.tensor(counts), rates[: len(levels)], shared), losses)[0]


def stream(n, seed=0, n_tasks=3):
    """Falling losses and label counts; the last task has labels in every other batch only."""
    rng = np.random.default_rng(seed)
    for k in range(n):
        counts = rng.integers(1, 20, n_tasks)
        counts[-1] *= k % 2
        levels = (np.array([0.6, 0.2, 0.06])[:n_tasks] * np.exp(-0.01 * k) * rng.uniform(0.8, 1.2, n_tasks)).tolist()
        yield [level if count else 0.0 for level, count in zip(levels, counts, strict=True)], counts.tolist()


def worked(make, n=40, user_weights=(1.0, 1.0, 1.0)):
    balancer = make(list(user_weights))
    for levels, counts in stream(n):
        total(balancer, levels, counts)
    return balancer


def test_the_methods_are_found() -> None:
    assert {"fixed", "entropy", "uncertainty", "dwa", "famo", "gradnorm", "upgrad", "pcgrad"} <= set(METHODS)


def test_every_task_with_labels_gets_a_finite_positive_weight(make) -> None:
    for balancer in (make([1.0, 1.0, 1.0]), worked(make)):
        found = weights(balancer, [0.5, 0.2, 0.1], [5, 5, 1])
        assert torch.isfinite(found).all()
        assert (found > 0).all()


def test_a_task_without_labels_or_weight_gets_no_gradient(make) -> None:
    for balancer in (make([1.0, 0.0, 1.0]), worked(make, user_weights=(1.0, 0.0, 1.0))):
        found = weights(balancer, [0.5, 0.2, 0.0], [5, 5, 0])
        assert found[0] > 0
        assert found[1:].tolist() == [0.0, 0.0]


def test_a_batch_without_any_label_costs_nothing(make) -> None:
    assert total(make([1.0, 1.0, 1.0]), [0.0, 0.0, 0.0], [0, 0, 0]).item() == 0.0


def test_a_batch_without_any_label_leaves_the_state_alone(make) -> None:
    balancer = worked(make)
    before = {name: array.copy() for name, array in balancer.state().items()}
    total(balancer, [0.0, 0.0, 0.0], [0, 0, 0])
    for name, array in balancer.state().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_what_the_loss_of_a_task_without_labels_holds_does_not_matter(make) -> None:
    one, other = worked(make), worked(make)
    for levels, counts in stream(20, seed=1):
        last = levels[-1] if counts[-1] else 5.0
        torch.testing.assert_close(total(one, levels, counts), total(other, [*levels[:-1], last], counts))


def test_extreme_base_rates_stay_finite(make) -> None:
    assert torch.isfinite(total(make([1.0, 1.0]), [0.5, 0.5], [3, 3], [1e-7, 1 - 1e-7]))


def test_a_loss_that_is_not_finite_is_seen_in_the_total_and_not_in_later_ones(make) -> None:
    balancer = worked(make)
    assert not torch.isfinite(total(balancer, [math.nan, 0.2, 0.1], [7, 5, 3]))
    assert torch.isfinite(total(balancer, [0.5, 0.2, 0.1], [7, 5, 3]))


def test_the_order_of_tasks_does_not_matter(make) -> None:
    order = [2, 0, 1]
    user_weights = [1.0, 2.0, 3.0]
    straight, permuted = make(user_weights), make([user_weights[k] for k in order])
    for levels, counts in stream(30):
        one = total(straight, levels, counts)
        other = total(permuted, [levels[k] for k in order], [counts[k] for k in order], RATES[order], DIRECTIONS[order])
        torch.testing.assert_close(one, other)


def test_a_restored_method_goes_on_bit_for_bit(make) -> None:
    straight = worked(make)
    resumed = make([1.0, 1.0, 1.0])
    resumed.restore({name: array.copy() for name, array in straight.state().items()})
    for levels, counts in stream(20, seed=1):
        assert torch.equal(total(straight, levels, counts), total(resumed, levels, counts))


def test_a_state_of_another_number_of_tasks_is_refused(make) -> None:
    state = worked(make).state()
    if not any(array.shape[-1] == 3 for array in state.values()):
        pytest.skip("no state per task")
    with pytest.raises(ValueError, match=r"found float\d\d\[.*3\]"):
        make([1.0, 1.0]).restore(state)
    with pytest.raises(ValueError, match="found nothing"):
        make([1.0, 1.0]).restore({})


def test_nobody_elses_random_numbers_are_used_up(make) -> None:
    before = torch.random.get_rng_state()
    worked(make, 5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_fixed_method_is_the_weighted_sum() -> None:
    assert total(fixed.Balancing([1.0, 2.5]), [0.6, 0.2], [8, 8]).item() == pytest.approx(0.6 + 2.5 * 0.2)


def test_a_task_counts_for_as_many_rows_as_it_has() -> None:
    assert total(fixed.Balancing([1.0, 1.0]), [0.6, 0.2], [8, 2]).item() == pytest.approx(0.6 + 0.2 * 2 / 8)


def test_over_its_entropy_a_loss_that_says_the_base_rate_is_one() -> None:
    rates = [0.5, 0.01]
    levels = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in rates]
    assert levels == pytest.approx([math.log(2), 0.0560015], rel=1e-5)
    assert total(entropy.Balancing([1.0, 1.0]), levels, [8, 8], rates).item() == pytest.approx(2)
    assert total(entropy.Balancing([1.0, 3.0]), levels, [8, 4], rates).item() == pytest.approx(1 + 3 / 2)


def test_the_entropy_is_that_of_the_base_rate_of_now() -> None:
    balancer = entropy.Balancing([1.0])
    early, late = (weights(balancer, [0.3], [8], np.array([rate])).item() for rate in (0.5, 0.004))
    assert early == pytest.approx(1 / math.log(2))
    assert late == pytest.approx(1 / 0.0260779, rel=1e-4)


def test_uncertainty_takes_a_gradient_step_on_s() -> None:
    balancer = uncertainty.Balancing([1.0, 1.0])
    assert total(balancer, [0.6, 0.2], [8, 4]).item() == pytest.approx(0.6 + 0.2 * 0.5)
    # ds = −lr · share · (½ − e^−s · L)
    np.testing.assert_allclose(balancer.state()["s"], [0.01 * 0.1, -0.01 * 0.5 * 0.3], rtol=1e-5)


def test_uncertainty_settles_at_half_over_the_loss_within_its_bounds() -> None:
    balancer = uncertainty.Balancing([1.0, 1.0, 1.0])
    for _ in range(2000):
        total(balancer, [0.6, 0.2, 1e-4], [8, 8, 8])
    np.testing.assert_allclose(balancer.state()["s"], [math.log(1.2), math.log(0.4), -3.0], atol=1e-3)


def test_dwa_weighs_by_the_ratio_of_the_recent_loss_to_the_one_before() -> None:
    balancer = dwa.Balancing([1.0, 1.0])
    assert weights(balancer, [0.6, 0.2], [8, 8]).tolist() == [1.0, 1.0]
    total(balancer, [0.3, 0.2], [8, 8])
    fast, slow = math.exp(-1 / 100), math.exp(-1 / 400)
    ratio = (0.6 * fast + 0.3) / (fast + 1) / ((0.6 * slow + 0.3) / (slow + 1))
    strength = np.exp([ratio / 2, 0.5])
    np.testing.assert_allclose(balancer.weights(), 2 * strength / strength.sum())


def test_dwa_gives_more_to_the_task_that_stands_still() -> None:
    balancer = dwa.Balancing([1.0, 1.0])
    for k in range(300):
        total(balancer, [0.6 * math.exp(-0.01 * k), 0.2], [8, 8])
    assert balancer.weights().sum() == pytest.approx(2)
    assert balancer.weights()[1] > 1.05


def test_famo_starts_with_weights_that_make_all_losses_count_the_same() -> None:
    found = weights(famo.Balancing([1.0, 1.0]), [0.6, 0.2], [8, 8])
    np.testing.assert_allclose(found * torch.tensor([0.6, 0.2]), [0.3, 0.3], rtol=1e-6)
    assert found.sum().item() == pytest.approx(2)


def test_famo_takes_an_adam_step_from_the_task_whose_loss_fell() -> None:
    balancer = famo.Balancing([1.0, 1.0])
    total(balancer, [0.6, 0.2], [8, 8])
    total(balancer, [0.3, 0.2], [8, 8])
    # The first loss fell: its gradient is z(1 − z)·.02·log 2, the other's the negative. The first of two batches was no
    # news, so of Adam's moments (.1·g / (1 − .9²)) / √(.001·g² / (1 − .999²)) is left.
    step = 0.025 * (0.1 / 0.19) / math.sqrt(0.001 / (1 - 0.999**2))
    np.testing.assert_allclose(balancer.state()["xi"], [-step, step], rtol=1e-4)


def test_famo_gives_more_to_the_task_that_stands_still() -> None:
    balancer = famo.Balancing([1.0, 1.0])
    rng = np.random.default_rng(0)
    for k in range(300):
        noise = rng.uniform(0.7, 1.3, 2)
        total(balancer, [0.6 * math.exp(-0.01 * k) * noise[0], 0.2 * noise[1]], [8, 8])
    xi = balancer.state()["xi"]
    assert xi[1] > xi[0] + 0.5


def test_gradnorm_steps_towards_the_norms_it_wants() -> None:
    balancer = gradnorm.Balancing([1.0, 1.0])
    rates = np.array([0.5, 0.5])
    total(balancer, [0.6, 0.3], [8, 8], rates)
    # Norms 1 and √.89; targets by lag .6/.45 and .3/.45: the first is below its target, the second above.
    norms = np.array([1.0, math.sqrt(0.89)])
    targets = norms.mean() * (np.array([0.6, 0.3]) / 0.45) ** 1.5
    assert (norms < targets).tolist() == [True, False]
    step = np.exp(np.array([0.025, -0.025]) * norms / norms.mean())
    np.testing.assert_allclose(balancer.weights(), 2 * step / step.sum(), rtol=1e-6)


def test_gradnorm_evens_out_the_norms_of_tasks_that_lag_alike() -> None:
    balancer = gradnorm.Balancing([1.0, 1.0])
    directions = torch.tensor([[4.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for _ in range(200 * gradnorm.EVERY):
        total(balancer, [0.5, 0.5], [8, 8], np.array([0.5, 0.5]), directions)
    np.testing.assert_allclose(balancer.weights(), [0.4, 1.6], rtol=0.05)


@pytest.mark.parametrize("module", [gradnorm, pytest.param(upgrad, marks=needs_torchjd)])
def test_a_method_that_compares_gradients_says_so_where_it_sees_none(module) -> None:
    losses, _ = batch([0.6, 0.2])
    with pytest.raises(ValueError, match="need the shared representation"):
        module.Balancing([1.0, 1.0])(losses, torch.tensor([8, 8]), RATES[:2])


def gradient(balancer, directions, levels=(0.6, 0.2), counts=(8, 8)):
    """The total's gradient at the shared representation."""
    shared = torch.zeros(3, requires_grad=True)
    losses = directions @ shared + torch.tensor(levels)
    return torch.autograd.grad(balancer(losses, torch.tensor(counts), RATES[: len(levels)], shared), shared)[0]


@needs_torchjd
@pytest.mark.parametrize("module", [upgrad, pcgrad])
def test_without_conflict_gradients_are_added_as_they_are(module) -> None:
    directions = torch.tensor([[1.0, 0.2, 0.0], [0.1, 0.8, 0.0]])
    found = gradient(module.Balancing([1.0, 2.0]), directions, counts=(8, 4))
    torch.testing.assert_close(found, directions.sum(0))


@needs_torchjd
@pytest.mark.parametrize("module", [upgrad, pcgrad])
def test_a_conflict_is_projected_out_so_that_no_loss_rises(module) -> None:
    directions = torch.tensor([[1.0, 0.0, 0.0], [-2.0, 0.5, 0.0]])
    assert directions[0] @ directions.sum(0) < 0, "the plain sum would raise the first loss"
    found = gradient(module.Balancing([1.0, 1.0]), directions)
    # (1, 0) without its part along (−2, .5), and (−2, .5) without its part along (1, 0).
    first = directions[0] + 2 / 4.25 * directions[1]
    torch.testing.assert_close(found, first + torch.tensor([0.0, 0.5, 0.0]), rtol=1e-5, atol=1e-6)
    assert (directions @ found >= -1e-6).all()


@needs_torchjd
def test_a_rare_tasks_tiny_gradient_is_protected_as_well() -> None:
    directions = torch.tensor([[1.0, 0.0, 0.0], [-2e-4, 5e-4, 0.0]])
    found = gradient(upgrad.Balancing([1.0, 1.0]), directions)
    assert directions[1] @ directions.sum(0) < 0
    assert directions[1] @ found >= -1e-9


@needs_torchjd
@pytest.mark.parametrize("module", [upgrad, pcgrad])
def test_towers_that_are_still_zero_give_the_plain_sum(module) -> None:
    shared = torch.ones(3, requires_grad=True)
    losses = (shared.sum() * 0.0) + torch.tensor([0.6, 0.2])
    assert module.Balancing([1.0, 1.0])(losses, torch.tensor([8, 8]), RATES[:2], shared).item() == pytest.approx(0.8)


def test_a_missing_package_is_named_with_its_way_out(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(ValueError, match=r"`upgrad` needs the package torchjd.*anabranch\[torchjd\]"):
        upgrad.Balancing([1.0])


def test_cosines_tell_conflict_from_indifference_from_agreement() -> None:
    shared = torch.zeros(2, 2, requires_grad=True)
    directions = torch.tensor([[1.0, 0, 0, 0], [-2.0, 0, 0, 0], [0, 3.0, 0, 0], [1.0, 1.0, 0, 0], [0, 0, 0, 0]])
    found = task_gradient_cosines(directions @ shared.flatten(), shared)
    half = math.sqrt(0.5)
    expected = [[1, -1, 0, half], [-1, 1, 0, -half], [0, 0, 1, half], [half, -half, half, 1]]
    np.testing.assert_allclose(found[:4, :4], expected, atol=1e-12)
    assert np.isnan(found[4]).all()
    assert np.isnan(found[:, 4]).all()
