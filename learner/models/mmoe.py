"""Multi-gate mixture of experts (Ma et al., KDD 2018): shared experts, one gate and one tower per task."""

import torch
from torch import Tensor, nn

from contracts.settings import ModelSettings
from learner.models._base import Shape
from learner.models._blocks import ParallelMlp, Towers

EMBEDDINGS_PER_TASK = False


class Mmoe(nn.Module):
    """E experts over one input; task t sees Σₑ gₜₑ(x)·fₑ(x)."""

    def __init__(self, shape: Shape, settings: ModelSettings) -> None:
        super().__init__()
        n_in = shape.n_embeddings * shape.width + shape.n_dense
        self.experts = ParallelMlp(settings.experts, n_in, settings.expert_layers)
        self.gates = nn.Linear(n_in, shape.n_tasks * settings.experts)
        nn.init.zeros_(self.gates.weight)
        nn.init.zeros_(self.gates.bias)
        self.towers = Towers(shape.n_tasks, self.experts.n_out, settings.tower)
        self._n_tasks = shape.n_tasks

    def forward(self, embeddings: Tensor, dense: Tensor) -> Tensor:
        """Residual logits, shape ``[N, T]``."""
        inputs = torch.cat([embeddings.flatten(1), dense], 1)
        experts = self.experts(inputs).transpose(0, 1)  # [N, E, H]
        gates = self.gates(inputs).view(len(inputs), self._n_tasks, -1).softmax(2)  # [N, T, E]
        mixed = torch.bmm(gates, experts)  # [N, T, H]
        logits: Tensor = self.towers(mixed.transpose(0, 1))
        return logits


def build(shape: Shape, settings: ModelSettings) -> nn.Module:
    """The component's entry point."""
    return Mmoe(shape, settings)
