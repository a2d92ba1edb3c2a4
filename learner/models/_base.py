"""What every architecture is given and gives; a module here is a component, found by its name.

A module defines ``EMBEDDINGS_PER_TASK`` (true: each task has embeddings of its own) and
``build(shape, settings) -> Architecture``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contracts.batch import Bools, Float32s, Layout
from contracts.components import load
from contracts.settings import ModelSettings


class Shape(NamedTuple):
    """Sizes that an architecture is built for."""

    n_tasks: int
    n_embeddings: int
    """Embeddings per example: id fields, then one pooled history per event type."""
    width: int
    """Floats per embedding and task."""
    n_dense: int


class Architecture(Protocol):
    """The deep part: ``[N, F + Y, width]`` (or ``[N, F + Y, T·width]``) and ``[N, D]`` to ``[N, T]``, zero at first."""

    def __call__(self, embeddings: Tensor, dense: Tensor) -> Tensor:
        """Residual logits, shape ``[N, T]``."""


class Network(nn.Module):
    """Deep part plus a wide linear part over the dense features; both start at zero (DESIGN §3).

    The wide part is that of Cheng et al. 2016 (Wide & Deep): behaviour features act on a logit directly, since ids
    alone lose to a recency memory.
    """

    def __init__(self, name: str, layout: Layout, settings: ModelSettings, seed: int) -> None:
        super().__init__()
        module = load("learner.models", name)
        n_tasks = len(layout.tasks)
        self.embedding_width = settings.width * (n_tasks if module.EMBEDDINGS_PER_TASK else 1)
        shape = Shape(n_tasks, len(layout.fields) + len(layout.event_types), settings.width, len(layout.dense))
        # The modules draw their initial weights from torch's global generator: fork it, so that nobody else notices.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.deep: nn.Module = module.build(shape, settings)
            self.wide = nn.Linear(len(layout.dense), n_tasks, bias=False)
        nn.init.zeros_(self.wide.weight)

    def forward(self, embeddings: Tensor, dense: Tensor) -> Tensor:
        """Residual logits: to be added to each task's base-rate logit.

        :param embeddings: shape ``[N, F + Y, embedding_width]``.
        :param dense: shape ``[N, D]``.
        :returns: shape ``[N, T]``.
        """
        logits: Tensor = self.deep(embeddings, dense) + self.wide(dense)
        return logits


def comparable_logits(residual: Float32s, log_q: Float32s, base: Float32s, sampled: Bools) -> Float32s:
    """Logits that compare items, from the network's residuals; what scoring serves.

    An outcome's logit is residual + base rate. A task that learned against sampled items gives the log-odds of its item
    against one drawn uniformly: training removed log q, so it is added here (Yi et al. 2019).

    :param residual: shape ``[N, T]``; ``log_q``: ``[N]``; ``base`` and ``sampled``: ``[T]``.
    :returns: shape ``[N, T]``.
    """
    logits: Float32s = residual + np.where(sampled, log_q[:, None], base)
    return logits


def load_network(network: Network, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Copy weights into a network of the same shape."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            value.copy_(torch.from_numpy(arrays[name]))
