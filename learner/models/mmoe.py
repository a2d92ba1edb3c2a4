"""Multi-gate mixture of experts (Ma et al., KDD 2018): shared experts, one gate and one tower per task.

One more gate and tower are common to all tasks (:class:`learner.models._blocks.CommonTowers`).
"""

import itertools

from torch import Tensor, nn

from contracts.settings import ModelSettings
from learner.models._axes import COMMON, Axes, Names, mlp_axes, tower_axes
from learner.models._base import Shape
from learner.models._blocks import CommonTowers, ExpertDropout, ParallelMlp, gate_weights, mixtures
from learner.viewers import Viewers

EMBEDDINGS_PER_TASK = False


class Mmoe(nn.Module):
    """E experts over one input; task t sees Σₑ gₜₑ(x)·fₑ(x)."""

    def __init__(self, shape: Shape, settings: ModelSettings) -> None:
        super().__init__()
        self.experts = ParallelMlp(
            settings.experts,
            shape.n_embeddings * shape.width,
            shape.n_dense,
            settings.expert_layers,
            n_beside=(shape.n_tasks + 1) * settings.experts,
        )
        self.dropout = ExpertDropout()
        self.towers = CommonTowers(shape.n_tasks, self.experts.n_out, settings.tower)
        self._n_gates, self._n_experts = shape.n_tasks + 1, settings.experts

    def forward(self, embeddings: Tensor, dense: Tensor, viewers: Viewers | None = None) -> Tensor:
        """Residual logits, shape ``[N, T]``."""
        experts, beside = self.experts(embeddings.flatten(1), dense, viewers)  # [E, N, H], [N, (T + 1)·E]
        logits: Tensor = self.towers(mixtures(beside, experts, self._n_gates, self.dropout))
        return logits

    @property
    def gate_names(self) -> list[str]:
        """What each of a task's gate weights belongs to."""
        return [f"expert {expert + 1}" for expert in range(self._n_experts)]

    def gates(self, embeddings: Tensor, dense: Tensor) -> Tensor:
        """Weights of the experts in each task's own sum, shape ``[T, E, N]``; the common tower's gate is left out."""
        _, beside = self.experts(embeddings.flatten(1), dense)
        return gate_weights(beside, self._n_gates)[:-1]


def axes(names: Names, settings: ModelSettings) -> Axes:
    """What each parameter's indices belong to."""
    towers, experts = (*names.tasks, COMMON), range(settings.experts)
    gates = list(itertools.product(towers, experts))
    inputs = names.inputs(settings.width)
    return mlp_axes("experts", inputs, experts, settings.expert_layers, gates) | tower_axes("towers.towers", towers)


def build(shape: Shape, settings: ModelSettings) -> nn.Module:
    """The component's entry point."""
    return Mmoe(shape, settings)
