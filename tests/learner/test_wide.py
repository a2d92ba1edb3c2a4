"""The wide part over ids: its step, who has weights in it, and what is kept."""

import numpy as np
import pytest
import torch

from contracts.settings import EmbeddingSettings
from features.hashing import EMPTY
from learner.wide import WideWeights

SLOTS, K = (1, 1, 1, 3), 4
RATE, INITIAL = 0.07, 0.2


def wide_weights():
    settings = EmbeddingSettings(learning_rate=RATE, initial_accumulator=INITIAL)
    return WideWeights(settings, SLOTS, K)


def random_ids(rng, n):
    ids = rng.integers(1, 9, (n, sum(SLOTS))) + 100 * np.arange(sum(SLOTS))
    ids[rng.random(ids.shape) < 0.3] = EMPTY
    ids[:, :3] = np.abs(ids[:, :3])
    return ids


def reference(weights, ids):
    """The sum over the fields behind user and item, of several values their mean; ``weights`` by value."""
    total = torch.zeros(len(ids), K)
    for n, row in enumerate(ids.tolist()):
        for field in (row[2:3], row[3:]):
            values = [value for value in field if value != EMPTY]
            if values:
                total[n] += torch.stack([weights[value] for value in values]).mean(0)
    return total


def by_value(made, ids):
    """The weights of each value, told by rows that hold nothing else."""
    found = {}
    for value in np.unique(ids[:, 2:]).tolist():
        row = np.full((1, sum(SLOTS)), EMPTY)
        row[0, 2] = value
        found[value] = made.add_up(row)[0]
    return found


def test_a_step_is_that_of_row_wise_adagrad_with_duplicates_and_means() -> None:
    made, rng = wide_weights(), np.random.default_rng(0)
    accumulators = {}
    for _ in range(4):
        ids = random_ids(rng, 30)
        weights = {value: one.clone().requires_grad_() for value, one in by_value(made, ids).items()}
        expected = reference(weights, ids)
        torch.testing.assert_close(made.add_up(ids), expected.detach())
        gradient = torch.from_numpy(rng.normal(size=expected.shape).astype(np.float32))
        (expected * gradient * 3.0).sum().backward()
        made.update(ids, gradient, 3.0)
        after = by_value(made, ids)
        for value, before in weights.items():
            if value == EMPTY or before.grad is None:
                continue
            accumulators[value] = accumulators.get(value, INITIAL) + float(before.grad.square().mean())
            moved = before.detach() - RATE * before.grad / accumulators[value] ** 0.5
            torch.testing.assert_close(after[value], moved, rtol=1e-4, atol=1e-6)
    assert len(accumulators) > 15


def test_users_and_items_have_no_weights() -> None:
    made, rng = wide_weights(), np.random.default_rng(0)
    ids = random_ids(rng, 20)
    made.update(ids, torch.ones(20, K), 1.0)
    before, others = made.add_up(ids), ids.copy()
    assert before.abs().min() > 0
    others[:, :2] += 1000
    assert torch.equal(made.add_up(others), before)
    alone = np.full_like(ids, EMPTY)
    alone[:, :2] = ids[:, :2]
    assert not made.add_up(alone).any()


def test_a_pull_moves_the_touched_values_and_no_others() -> None:
    made, rng = wide_weights(), np.random.default_rng(0)
    ids = random_ids(rng, 30)
    made.update(ids, torch.from_numpy(rng.normal(size=(30, K)).astype(np.float32)), 1.0)
    before = by_value(made, ids)
    touched = set(np.unique(ids[:3, 2:]).tolist()) - {EMPTY}
    made.update(ids[:3], torch.zeros(3, K), 1.0, l1=0.02, l2=0.3)
    after = by_value(made, ids)
    for value, one in before.items():
        if value in touched:
            assert ((after[value] - one) * one < 0).all()
        else:
            assert torch.equal(after[value], one)


def test_what_is_saved_goes_on_identically_and_forgetting_shows_in_the_next_step() -> None:
    rng = np.random.default_rng(0)
    ids, gradient = random_ids(rng, 30), torch.from_numpy(rng.normal(size=(30, K)).astype(np.float32))
    made, loaded, forgetful = (wide_weights() for _ in range(3))
    made.update(ids, gradient, 5.0)
    for other in (loaded, forgetful):
        other.load({name: array.copy() for name, array in made.save().items()})
    forgetful.forget(0.0)
    assert forgetful.save()["accumulators"] == pytest.approx(INITIAL)
    start = made.add_up(ids)
    for one in (made, loaded, forgetful):
        one.update(ids, gradient, 5.0)
    assert torch.equal(loaded.add_up(ids), made.add_up(ids))
    assert (forgetful.add_up(ids) - start).norm() > (made.add_up(ids) - start).norm()
