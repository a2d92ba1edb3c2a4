"""What every architecture keeps to, found by its module's name."""

import pytest
import torch

from contracts.components import load, names
from contracts.settings import ModelSettings
from learner.losses import masked_bce
from learner.models._base import Network, gate_entropies, load_network

MODELS = names("learner.models")
SETTINGS = ModelSettings(width=4, experts=3, expert_layers=(8, 6), tower=5)


@pytest.fixture(params=MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture
def layout(make_settings, layout_of):
    return layout_of(make_settings())


def inputs(network, layout, n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = len(layout.fields) + len(layout.event_types)
    embeddings = torch.randn(n, channels, network.embedding_width, generator=generator)
    return embeddings.requires_grad_(), torch.randn(n, len(layout.dense), generator=generator)


def logits_of(network, embeddings, dense):
    """Of values that add nothing by themselves."""
    return network(embeddings, torch.zeros(len(dense), network.n_wide), dense)


def trained(name, layout, steps=3, seed=0):
    """A network a few steps from its start, where every part of it matters."""
    network = Network(name, layout, SETTINGS, seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    embeddings, dense = inputs(network, layout)
    labels = (torch.rand(12, len(layout.tasks), generator=torch.Generator().manual_seed(1)) < 0.5).float()
    for _ in range(steps):
        optimizer.zero_grad()
        embeddings.grad = None
        masked_bce(
            logits_of(network, embeddings, dense), labels, torch.ones_like(labels, dtype=torch.bool)
        ).sum().backward()
        optimizer.step()
    return network, embeddings, dense


def test_there_are_architectures_to_test() -> None:
    assert {"mmoe", "shared_bottom", "single_task"} <= set(MODELS)


def test_the_residual_is_zero_at_first_so_that_ne_is_one(name, layout) -> None:
    network = Network(name, layout, SETTINGS, 0)
    assert not logits_of(network, *inputs(network, layout)).any()


def test_every_parameter_and_every_embedding_gets_a_finite_gradient(name, layout) -> None:
    network, embeddings, _ = trained(name, layout)
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.any(), parameter_name
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()
    # Not in every row: with every hidden unit at rest, a row has none.
    assert embeddings.grad.any(2).any(0).all(), "some field does not matter"


def test_each_row_is_scored_by_itself(name, layout) -> None:
    network, embeddings, dense = trained(name, layout)
    logits = logits_of(network, embeddings, dense)
    assert logits.shape == (12, len(layout.tasks))
    assert logits.any()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(logits_of(network, embeddings[order], dense[order]), logits[order])
    torch.testing.assert_close(logits_of(network, embeddings[3:4], dense[3:4]), logits[3:4])


def test_what_values_add_by_themselves_is_each_tasks_own_and_the_common(name, layout) -> None:
    network, embeddings, dense = trained(name, layout)
    n_tasks, wide = len(layout.tasks), torch.randn(12, network.n_wide, generator=torch.Generator().manual_seed(3))
    assert network.n_wide == n_tasks + (0 if load("learner.models", name).EMBEDDINGS_PER_TASK else 1)
    added = network(embeddings, wide, dense) - logits_of(network, embeddings, dense)
    torch.testing.assert_close(added, wide[:, :n_tasks] + wide[:, n_tasks:].sum(1, keepdim=True))


def test_the_seed_alone_decides_the_start(name, layout) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = Network(name, layout, SETTINGS, 5).state_dict()
    assert torch.equal(before, torch.random.get_rng_state()), "somebody else's random numbers were used up"
    torch.manual_seed(2)
    second, other = Network(name, layout, SETTINGS, 5).state_dict(), Network(name, layout, SETTINGS, 6).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


def test_loaded_weights_give_the_same_logits(name, layout) -> None:
    network, embeddings, dense = trained(name, layout)
    other = Network(name, layout, SETTINGS, 99)
    load_network(other, {key: value.numpy() for key, value in network.state_dict().items()})
    assert torch.equal(logits_of(other, embeddings, dense), logits_of(network, embeddings, dense))


def test_one_task_is_enough(name, make_settings, layout_of) -> None:
    layout = layout_of(make_settings(tasks=[{"name": "click"}]))
    network, embeddings, dense = trained(name, layout)
    assert logits_of(network, embeddings, dense).shape == (12, 1)


def test_tasks_of_an_architecture_with_embeddings_per_task_touch_only_their_own(name, layout) -> None:
    if not load("learner.models", name).EMBEDDINGS_PER_TASK:
        pytest.skip(f"{name} shares its embeddings")
    network, embeddings, dense = trained(name, layout)
    for task in range(len(layout.tasks)):
        embeddings.grad = None
        logits_of(network, embeddings, dense)[:, task].sum().backward()
        touched = embeddings.grad.view(12, -1, len(layout.tasks), SETTINGS.width).abs().sum((0, 1, 3)) > 0
        assert touched.tolist() == [index == task for index in range(len(layout.tasks))]


def test_tasks_of_an_architecture_without_share_what_they_learn(name, layout) -> None:
    if load("learner.models", name).EMBEDDINGS_PER_TASK:
        pytest.skip(f"{name} shares nothing")
    network, embeddings, dense = trained(name, layout)
    logits_of(network, embeddings, dense)[:, 0].sum().backward()
    assert network.embedding_width == SETTINGS.width
    assert embeddings.grad.any()


@pytest.mark.parametrize(("name", "names_of_gates"), [("mmoe", ["expert 1", "expert 2"]), ("ple", ["shared 1", "own"])])
def test_gates_are_the_weights_of_what_a_task_sees(name, names_of_gates, layout) -> None:
    network = Network(name, layout, SETTINGS.model_copy(update={"experts": 2}), 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        embeddings, dense = inputs(network, layout)
        gates = network.gated.gates(embeddings, dense)
        assert network.gated.gate_names == names_of_gates
        assert gates.shape == (len(layout.tasks), 2, 12)
        torch.testing.assert_close(gates.sum(1), torch.ones(len(layout.tasks), 12))
        before = logits_of(network, embeddings, dense)
        # Task 0's gate is sent wholly to its first expert, all else as it was: only task 0's logits change.
        n_experts, width = network.deep.experts._sizes
        first_gate = n_experts * width
        network.deep.experts.bias[first_gate] += 100
        assert (network.gated.gates(embeddings, dense)[0, 0] > 0.99).all()
        changed = (logits_of(network, embeddings, dense) != before).any(0)
    assert changed.tolist() == [True] + [False] * (len(layout.tasks) - 1)


@pytest.mark.parametrize("name", ["shared_bottom", "single_task"])
def test_a_model_without_gates_has_none(name, layout) -> None:
    assert Network(name, layout, SETTINGS, 0).gated is None


def test_the_entropy_of_a_gate_is_1_where_experts_are_alike_and_0_where_one_decides() -> None:
    alike, decided = torch.full((1, 4, 5), 0.25), torch.eye(4)[:, [0, 1, 2, 3, 0]].reshape(1, 4, 5)
    torch.testing.assert_close(gate_entropies(torch.cat([alike, decided])), torch.tensor([1.0, 0.0]))
    assert gate_entropies(torch.ones(2, 1, 5)).tolist() == [0, 0]


def test_an_unknown_architecture_is_refused_with_the_known_ones(layout) -> None:
    with pytest.raises(ValueError, match=f"found `mmoe2`, expected one of {', '.join(MODELS)}"):
        Network("mmoe2", layout, SETTINGS, 0)
