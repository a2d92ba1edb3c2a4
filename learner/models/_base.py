"""What every architecture is given and gives; a module here is a component, found by its name.

A module defines ``EMBEDDINGS_PER_TASK`` (true: each task has embeddings of its own) and
``build(shape, settings) -> Architecture``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contracts.batch import Layout
from contracts.components import load
from contracts.settings import ModelSettings
from learner.models._blocks import ExpertDropout, ParallelMlp


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
    alone lose to a recency memory. Each task's weights stand on common ones, unless the tasks share nothing.

    :param precision: of the first layer's products, where the architecture has a :class:`ParallelMlp`.
    :param dropout: rate of each :class:`ExpertDropout` of the architecture, in training mode.
    """

    def __init__(
        self,
        name: str,
        layout: Layout,
        settings: ModelSettings,
        seed: int,
        precision: torch.dtype = torch.float32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        module = load("learner.models", name)
        n_tasks = len(layout.tasks)
        self.embedding_width = settings.width * (n_tasks if module.EMBEDDINGS_PER_TASK else 1)
        self._embedded = (*layout.fields, *(f"history {kind}" for kind in layout.event_types))
        shape = Shape(n_tasks, len(self._embedded), settings.width, len(layout.dense))
        # The modules draw their initial weights from torch's global generator: fork it, so that nobody else notices.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.deep: nn.Module = module.build(shape, settings)
            self.wide = nn.Linear(len(layout.dense), n_tasks, bias=False)
            self.gates = nn.Parameter(torch.ones(shape.n_embeddings)) if settings.field_gates else None
            self.common = None if module.EMBEDDINGS_PER_TASK else nn.Linear(len(layout.dense), 1, bias=False)
        nn.init.zeros_(self.wide.weight)
        if self.common is not None:
            nn.init.zeros_(self.common.weight)
        for part in self.deep.modules():
            if isinstance(part, ParallelMlp):
                part.precision = precision
            elif isinstance(part, ExpertDropout):
                part.rate = dropout

    def forward(self, embeddings: Tensor, dense: Tensor) -> Tensor:
        """Residual logits: to be added to each task's base-rate logit.

        :param embeddings: shape ``[N, F + Y, embedding_width]``.
        :param dense: shape ``[N, D]``.
        :returns: shape ``[N, T]``.
        """
        if self.gates is not None:
            embeddings = embeddings * self.gates[:, None]
        wide = self.wide.weight if self.common is None else self.wide.weight + self.common.weight
        logits: Tensor = torch.addmm(self.deep(embeddings, dense), dense, wide.t())
        return logits

    def field_weights(self) -> dict[str, float]:
        """How much of each id field and each type's history the deep part takes, by name; empty without gates."""
        if self.gates is None:
            return {}
        return dict(zip(self._embedded, self.gates.detach().abs().tolist(), strict=True))


def load_network(network: Network, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Copy weights into a network of the same shape."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            value.copy_(torch.from_numpy(arrays[name]))
