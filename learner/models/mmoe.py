"""Multi-gate mixture of experts (Ma et al., KDD 2018): shared experts, one gate and one tower per task."""

from torch import Tensor, nn

from contracts.settings import ModelSettings
from learner.models._base import Shape
from learner.models._blocks import ParallelMlp, Towers

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
            n_beside=shape.n_tasks * settings.experts,
        )
        self.towers = Towers(shape.n_tasks, self.experts.n_out, settings.tower)
        self._gates = (shape.n_tasks, settings.experts, -1)

    def forward(self, embeddings: Tensor, dense: Tensor) -> Tensor:
        """Residual logits, shape ``[N, T]``."""
        experts, beside = self.experts(embeddings.flatten(1), dense)  # [E, N, H], [N, T·E]
        # A softmax over four numbers at a time is slow; over rows that lie side by side it is vectorised.
        gates = beside.t().reshape(self._gates).softmax(1)  # [T, E, N]
        mixed = (gates.unsqueeze(3) * experts).sum(1)  # [T, N, H]
        logits: Tensor = self.towers(mixed)
        return logits


def build(shape: Shape, settings: ModelSettings) -> nn.Module:
    """The component's entry point."""
    return Mmoe(shape, settings)
