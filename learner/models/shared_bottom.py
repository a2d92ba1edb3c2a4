"""Shared bottom: one network for all tasks, a tower for each (Caruana 1997)."""

from torch import Tensor, nn

from contracts.settings import ModelSettings
from learner.models._axes import COMMON, Axes, Names, mlp_axes, tower_axes
from learner.models._base import Shape
from learner.models._blocks import CommonTowers, ParallelMlp
from learner.viewers import Viewers

EMBEDDINGS_PER_TASK = False


class SharedBottom(nn.Module):
    """As wide as one expert of `mmoe`."""

    def __init__(self, shape: Shape, settings: ModelSettings) -> None:
        super().__init__()
        self.bottom = ParallelMlp(1, shape.n_embeddings * shape.width, shape.n_dense, settings.expert_layers)
        self.towers = CommonTowers(shape.n_tasks, self.bottom.n_out, settings.tower)
        self._n_towers = shape.n_tasks + 1

    def forward(self, embeddings: Tensor, dense: Tensor, viewers: Viewers | None = None) -> Tensor:
        """Residual logits, shape ``[N, T]``."""
        shared, _ = self.bottom(embeddings.flatten(1), dense, viewers)  # [1, N, H]
        logits: Tensor = self.towers(shared.expand(self._n_towers, -1, -1))
        return logits


def axes(names: Names, settings: ModelSettings) -> Axes:
    """What each parameter's indices belong to."""
    inputs = names.inputs(settings.width)
    bottom = mlp_axes("bottom", inputs, ["bottom"], settings.expert_layers)
    return bottom | tower_axes("towers.towers", (*names.tasks, COMMON))


def build(shape: Shape, settings: ModelSettings) -> nn.Module:
    """The component's entry point."""
    return SharedBottom(shape, settings)
