"""The regulariser: what is pulled, by how much, and that chance is repeatable."""

import pytest
import torch

from contracts.settings import TrainSettings
from learner.models._base import Network
from learner.models._blocks import ExpertDropout
from learner.regularise import Pull, with_dropout


@pytest.fixture
def network(make_settings, layout_of):
    settings = make_settings(model={"experts": 4})
    made = Network("mmoe", layout_of(settings), settings.model, 0, dropout=0.5).eval()
    for weights in made.parameters():
        torch.nn.init.normal_(weights, generator=torch.Generator().manual_seed(1))
    return made


def test_the_pull_is_the_gradient_of_the_norms_and_spares_biases(network) -> None:
    pull = Pull(network, TrainSettings(l1=0.3, l2=0.2))
    weights = torch.cat([one.detach().reshape(-1) for one in network.parameters()])
    penalty = sum(
        0.3 * one.abs().sum() + 0.2 * one.square().sum() / 2
        for name, one in network.named_parameters()
        if not name.endswith("bias")
    )
    expected = torch.autograd.grad(penalty, list(network.parameters()), allow_unused=True, materialize_grads=True)
    gradient = torch.ones_like(weights)
    pull.add(gradient, weights)
    torch.testing.assert_close(gradient, 1 + torch.cat([one.reshape(-1) for one in expected]))
    assert (gradient == 1).sum() == sum(
        one.numel() for name, one in network.named_parameters() if name.endswith("bias")
    )


def test_the_same_seed_leaves_out_the_same_experts_and_nobody_else_notices(network) -> None:
    n_dense = network.wide.in_features
    n_embeddings = (len(network.deep.experts.weight) - n_dense) // network.embedding_width
    embedded, dense = torch.randn(16, n_embeddings, network.embedding_width), torch.randn(16, n_dense)
    wide = torch.randn(16, network.n_wide)
    state = torch.get_rng_state()
    one, again, other = (with_dropout(network, embedded, wide, dense, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(network(embedded, wide, dense), one)
    assert torch.equal(network(embedded, wide, dense), network(embedded, wide, dense)), "dropout goes on after training"


def test_the_experts_that_stay_share_the_weight() -> None:
    dropout = ExpertDropout()
    dropout.rate = 0.4
    gates = torch.rand(3, 4, 2000, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert torch.equal(dropout.eval()(gates), gates)
    kept = dropout.train()(gates)
    sums = kept.sum(1)
    assert (torch.isclose(sums, torch.ones(())) | (sums == 0)).all()
    assert (kept == 0).float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert (sums == 0).float().mean().item() == pytest.approx(0.4**4, abs=0.01)
