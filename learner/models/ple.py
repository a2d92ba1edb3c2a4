"""Progressive layered extraction, one level (Tang et al., RecSys 2020): shared experts, and one of each task's own."""

import itertools

import torch
from torch import Tensor, nn

from contracts.settings import ModelSettings
from learner.models._axes import Axes, Names, mlp_axes, tower_axes
from learner.models._base import Shape
from learner.models._blocks import ExpertDropout, ParallelMlp, Towers, gate_weights
from learner.viewers import Viewers

EMBEDDINGS_PER_TASK = False


class Ple(nn.Module):
    """Task t sees Σₛ gₜₛ(x)·fₛ(x) + gₜ(x)·fₜ(x); no other task's gradient reaches its own expert fₜ.

    Half of the setting's `experts` are shared, at least one, and each task has one more: the default's two are one
    shared one.
    """

    def __init__(self, shape: Shape, settings: ModelSettings) -> None:
        super().__init__()
        self._n_shared, self._n_tasks = _n_shared(settings), shape.n_tasks
        self.experts = ParallelMlp(
            self._n_shared + shape.n_tasks,
            shape.n_embeddings * shape.width,
            shape.n_dense,
            settings.expert_layers,
            n_beside=shape.n_tasks * (self._n_shared + 1),
        )
        self.dropout = ExpertDropout()
        self.towers = Towers(shape.n_tasks, self.experts.n_out, settings.tower)

    def forward(self, embeddings: Tensor, dense: Tensor, viewers: Viewers | None = None) -> Tensor:
        """Residual logits, shape ``[N, T]``."""
        experts, beside = self.experts(embeddings.flatten(1), dense, viewers)  # [S + T, N, H], [N, T·(S + 1)]
        gates = self.dropout(gate_weights(beside, self._n_tasks))  # [T, S + 1, N]
        mixed = gates[:, -1].unsqueeze(2) * experts[self._n_shared :]  # [T, N, H]
        for expert in range(self._n_shared):
            mixed = torch.addcmul(mixed, gates[:, expert].unsqueeze(2), experts[expert])
        logits: Tensor = self.towers(mixed)
        return logits

    @property
    def gate_names(self) -> list[str]:
        """What each of a task's gate weights belongs to."""
        return [*(f"shared {expert + 1}" for expert in range(self._n_shared)), "own"]

    def gates(self, embeddings: Tensor, dense: Tensor) -> Tensor:
        """Weights of the shared experts and of its own in each task's sum, shape ``[T, S + 1, N]``."""
        _, beside = self.experts(embeddings.flatten(1), dense)
        return gate_weights(beside, self._n_tasks)


def axes(names: Names, settings: ModelSettings) -> Axes:
    """What each parameter's indices belong to."""
    shared = [f"shared {expert}" for expert in range(_n_shared(settings))]
    gates = list(itertools.product(names.tasks, [*shared, "own"]))
    inputs = names.inputs(settings.width)
    experts = mlp_axes("experts", inputs, [*shared, *names.tasks], settings.expert_layers, gates)
    return experts | tower_axes("towers", names.tasks)


def _n_shared(settings: ModelSettings) -> int:
    return max(settings.experts // 2, 1)


def build(shape: Shape, settings: ModelSettings) -> nn.Module:
    """The component's entry point."""
    return Ple(shape, settings)
