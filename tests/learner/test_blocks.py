"""The blocks that architectures share: hand-written gradients against torch's, and bfloat16 against float32."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from contracts.batch import Layout
from contracts.settings import ModelSettings
from learner.models._base import Network
from learner.models._blocks import CommonTowers, ExpertDropout, ParallelMlp, mixtures

ROWS = (1, 63, 64, 100)
LAYOUT = Layout(("view", "buy"), ("user_id", "item_id"), (1, 1), ("d0", "d1", "d2"), ("view",), 4)


def inputs(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 12, generator=generator).requires_grad_(), torch.randn(n, 5, generator=generator)


def block(n_beside=4):
    torch.manual_seed(1)
    made = ParallelMlp(3, 12, 5, (8, 6), n_beside=n_beside)
    with torch.no_grad():
        made.weight.normal_()
        made.bias.normal_()
    return made


def plain(made, embedded, dense):
    """What the block computes, in torch's own operations."""
    first = torch.cat([embedded, dense], 1) @ made.weight + made.bias
    hidden = first[:, :24].relu().view(-1, 3, 8).transpose(0, 1)
    return made.rest[0](hidden).relu(), first[:, 24:]


def gradients(outputs, embedded, made):
    generator = torch.Generator().manual_seed(3)
    total = sum((output * torch.randn(output.shape, generator=generator)).sum() for output in outputs)
    return torch.autograd.grad(total, [embedded, *made.parameters()])


@pytest.mark.parametrize("n_beside", [0, 4])
@pytest.mark.parametrize("n", ROWS)
def test_the_first_layer_and_its_gradients_are_those_of_plain_operations(n, n_beside) -> None:
    made, (embedded, dense) = block(n_beside), inputs(n)
    found, expected = made(embedded, dense), plain(made, embedded, dense)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, embedded, made), gradients(expected, embedded, made))


@pytest.mark.parametrize("n", ROWS)
def test_in_bfloat16_outputs_and_gradients_are_float32_and_off_by_its_rounding_only(n) -> None:
    made, (embedded, dense) = block(), inputs(n)
    expected = made(embedded, dense)
    expected_gradients = gradients(expected, embedded, made)
    made.precision = torch.bfloat16
    found = made(embedded, dense)
    assert not torch.equal(found[1], expected[1])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 0.01 * other.norm()
    for one, other in zip(gradients(found, embedded, made), expected_gradients, strict=True):
        assert one.dtype == torch.float32
        assert one.shape == other.shape
        # More than rounding: a unit close to zero may wake or rest.
        assert (one - other).norm() <= 0.1 * other.norm()


@pytest.mark.parametrize("n", ROWS)
def test_a_mixture_and_its_gradients_are_those_of_plain_operations(n) -> None:
    generator = torch.Generator().manual_seed(0)
    beside = torch.randn(n, 8, generator=generator).requires_grad_()
    experts = torch.randn(4, n, 6, generator=generator).requires_grad_()
    gates = beside.view(n, 2, 4).softmax(2)  # [N, T, E]
    expected = torch.einsum("nte,enh->tnh", gates, experts)
    found = mixtures(beside, experts, 2, ExpertDropout())
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, generator=generator)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), [beside, experts]),
        torch.autograd.grad((expected * weights).sum(), [beside, experts]),
    )


def test_the_common_tower_moves_every_task_and_its_own_one_only_itself() -> None:
    towers = CommonTowers(3, 5, 4)
    for parameter in towers.parameters():
        torch.nn.init.normal_(parameter)
    inputs = torch.randn(4, 7, 5)  # three tasks' inputs, then the common one
    before = towers(inputs)
    assert before.shape == (7, 3)
    for place, moved in ((0, [True, False, False]), (2, [False, False, True]), (3, [True, True, True])):
        changed = inputs.clone()
        changed[place] += 10.0
        differences = (towers(changed) - before).abs().amax(0)
        assert (differences > 1e-6).tolist() == moved


def test_a_task_without_labels_learns_from_the_others_through_the_common_parts() -> None:
    """As a rare task does between two of its positives; where nothing is shared it stays at its base rate."""
    rates = {}
    for name in ("mmoe", "shared_bottom", "single_task"):
        network = Network(name, LAYOUT, ModelSettings(), 0)
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        embedded, dense = torch.randn(64, 3, network.embedding_width), torch.randn(64, len(LAYOUT.dense))
        wide = torch.zeros(64, network.n_wide)
        for _ in range(30):
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(network(embedded, wide, dense)[:, 0], (dense[:, 0] > 0).float()).backward()
            optimizer.step()
        other = network(embedded, wide, dense)[:, 1].detach()
        rates[name] = float(torch.corrcoef(torch.stack([other, dense[:, 0]]))[0, 1]) if other.any() else 0.0
    assert rates["mmoe"] > 0.5
    assert rates["shared_bottom"] > 0.5
    assert rates["single_task"] == 0.0
