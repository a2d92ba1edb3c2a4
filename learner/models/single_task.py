"""Single-task networks: each task with embeddings, bottom and tower of its own; nothing is shared but the stream."""

import itertools

import torch
from torch import Tensor, nn

from contracts.settings import ModelSettings
from learner.models._axes import Axes, Axis, Names, parallel_axes, tower_axes
from learner.models._base import Shape
from learner.models._blocks import ParallelLinear, Towers
from learner.viewers import Viewers

EMBEDDINGS_PER_TASK = True


class SingleTask(nn.Module):
    """T networks, each as wide as `shared_bottom`."""

    def __init__(self, shape: Shape, settings: ModelSettings) -> None:
        super().__init__()
        sizes = (shape.n_embeddings * shape.width + shape.n_dense, *settings.expert_layers)
        self.layers = nn.ModuleList(
            ParallelLinear(shape.n_tasks, below, above) for below, above in itertools.pairwise(sizes)
        )
        self.towers = Towers(shape.n_tasks, sizes[-1], settings.tower)
        self._n_tasks = shape.n_tasks

    def forward(self, embeddings: Tensor, dense: Tensor, viewers: Viewers | None = None) -> Tensor:  # noqa: ARG002
        """Residual logits, shape ``[N, T]``."""
        own = embeddings.view(len(embeddings), embeddings.shape[1], self._n_tasks, -1)  # [N, C, T, d]
        own = own.permute(2, 0, 1, 3).flatten(2)  # [T, N, C·d]
        hidden = torch.cat([own, dense.expand(self._n_tasks, -1, -1)], 2)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        logits: Tensor = self.towers(hidden)
        return logits


def axes(names: Names, settings: ModelSettings) -> Axes:
    """What each parameter's indices belong to."""
    made = tower_axes("towers", names.tasks)
    for place in range(len(settings.expert_layers)):
        inputs = names.inputs(settings.width) if place == 0 else None
        made |= parallel_axes(f"layers.{place}", Axis(names.tasks), inputs)
    return made


def build(shape: Shape, settings: ModelSettings) -> nn.Module:
    """The component's entry point."""
    return SingleTask(shape, settings)
