"""Dense features about their running mean, over their running standard deviation."""

import numpy as np
import pytest
import torch

from learner.models._base import Spread
from learner.trainer import Trainer

SPREADS = torch.tensor([5.0, 0.5, 0.2, 0.01])


def rows(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)) * SPREADS + 1.0


def test_before_anything_is_seen_the_features_stay_as_they_are() -> None:
    torch.testing.assert_close(Spread(4)(rows(3)), rows(3))


def test_each_feature_comes_to_a_mean_of_zero_and_a_spread_of_one_and_none_is_raised_more_than_three_times() -> None:
    spread = Spread(4)
    for seed in range(1000):
        spread.observe(rows(1000, seed))
    found = spread(rows(100_000, seed=1000))
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(found.std(0), torch.tensor([1.0, 1.0, 0.2 * 10**0.5, 0.01 * 10**0.5]), atol=0.02, rtol=0)


@pytest.mark.parametrize("n", [7, 250])
def test_mean_and_variance_are_those_of_all_rows_however_they_are_cut(n: int) -> None:
    """With the thousand rows that it begins with, of mean 0 and variance 1."""
    spread, told = Spread(4), rows(1750)
    for start in range(0, 1750, n):
        spread.observe(told[start : start + n])
    begun = np.random.default_rng(1).normal(size=(1000, 4))
    begun = (begun - begun.mean(0)) / begun.std(0)
    every = np.concatenate([begun, told.numpy()])
    np.testing.assert_allclose(spread.mean.numpy(), every.mean(0), atol=1e-4)
    np.testing.assert_allclose(spread.variance.numpy(), every.var(0), rtol=1e-3)


def test_the_spread_follows_a_feature_that_changes() -> None:
    spread = Spread(4)
    spread.count.fill_(1e6)
    for seed in range(60):
        spread.observe(4 * rows(50_000, seed))
    assert spread.variance[0].sqrt().item() == pytest.approx(20, rel=0.05)


def test_one_absurd_number_does_not_make_all_others_the_same() -> None:
    spread, told = Spread(4), rows(1000)
    told[0] = 1e30
    spread.observe(told)
    assert torch.isfinite(spread.variance).all()
    assert (spread(torch.ones(1, 4)) - spread(torch.zeros(1, 4))).min() > 0.1


def test_a_step_takes_its_rows_in_and_a_snapshot_keeps_them(make_settings, layout_of, make_batch) -> None:
    settings = make_settings()
    layout = layout_of(settings)
    trainer, other = Trainer(settings, layout), Trainer(settings, layout)
    trainer.step(make_batch(layout, 40, np.random.default_rng(0)))
    assert trainer.network.spread.count == 1040
    assert not torch.equal(trainer.network.spread.variance, torch.ones(len(layout.dense)))
    other.restore(*trainer.save())
    for name, value in trainer.network.spread.state_dict().items():
        assert torch.equal(value, other.network.spread.state_dict()[name]), name
