"""What every architecture is given and gives; a module here is a component, found by its name.

A module defines ``EMBEDDINGS_PER_TASK`` (true: each task has embeddings of its own),
``build(shape, settings) -> Architecture`` and ``axes(names, settings) -> Axes``, by which a snapshot of fewer tasks or
fields is taken up (:mod:`learner.models._axes`).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from contracts.batch import Float32s, Layout
from contracts.components import load
from contracts.settings import ModelSettings
from learner.models._axes import Axes, Axis, Names
from learner.models._blocks import ExpertDropout, ParallelMlp
from learner.viewers import Sides, Viewers

_LEAST_VARIANCE, _MOST = 0.1, 100.0


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

    def __call__(self, embeddings: Tensor, dense: Tensor, viewers: Viewers | None = None) -> Tensor:
        """Residual logits, shape ``[N, T]``; ``viewers`` may save work, and change nothing but rounding."""


@runtime_checkable
class Gated(Protocol):
    """An architecture whose tasks weigh experts."""

    @property
    def gate_names(self) -> list[str]:
        """What each of a task's G weights belongs to."""

    def gates(self, embeddings: Tensor, dense: Tensor) -> Tensor:
        """Weights, shape ``[T, G, N]``, that sum to 1 over G."""


class Spread(nn.Module):
    """Each dense feature less its running mean, over its running standard deviation (ADR 29).

    A mean that stays in a feature is a second bias, which rows that have none of the feature, those of a new item,
    miss. What is rare is raised three times at most: raised more, it is learned faster than it is known. Mean and
    variance are of all rows, and of the last million in time (Welford 1962, in batches as Chan et al. 1979); they begin
    as if a thousand rows had had a mean of 0 and a variance of 1.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, n_dense: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_dense))
        self.register_buffer("variance", torch.ones(n_dense))
        self.register_buffer("count", torch.tensor(1e3))

    def observe(self, dense: Tensor) -> None:
        """Take in rows, shape ``[N, D]``; beyond ±100 a number counts as that."""
        count = torch.clamp(self.count + len(dense), max=1e6)
        share = len(dense) / count
        step, square = (torch.from_numpy(one) for one in _moments(dense.numpy(), self.mean.numpy()))
        variance = square - step.square()
        self.variance += share * (variance - self.variance + (1 - share) * step.square())
        self.mean += share * step
        self.count.copy_(count)

    def forward(self, dense: Tensor) -> Tensor:
        """Shape ``[N, D]`` to the same."""
        scale = self.variance.clamp(min=_LEAST_VARIANCE).rsqrt()  # [D]
        return torch.addcmul(-self.mean * scale, dense, scale)


@njit(cache=True, nogil=True)
def _moments(dense: Float32s, mean: Float32s) -> tuple[Float32s, Float32s]:
    """Mean and mean square of what rows, shape ``[N, D]``, are apart from a mean so far, shape ``[D]``.

    About the mean so far, a difference of squares is exact enough; as torch operations these were six passes.
    """
    total, squares = np.zeros(len(mean)), np.zeros(len(mean))
    for n in range(len(dense)):
        for d in range(len(mean)):
            apart = min(max(dense[n, d], -_MOST), _MOST) - mean[d]
            total[d] += apart
            squares[d] += apart * apart
    n_rows = max(len(dense), 1)
    return (total / n_rows).astype(np.float32), (squares / n_rows).astype(np.float32)


class Network(nn.Module):
    """Deep part plus a wide linear part; both start at zero (DESIGN §3).

    The wide part is that of Cheng et al. 2016 (Wide & Deep): behaviour features act on a logit directly, since ids
    alone lose to a recency memory, and so do declared fields, whose weights :mod:`learner.wide` has. Each task's
    weights stand on common ones, unless the tasks share nothing.

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
        self.n_wide = n_tasks + (not module.EMBEDDINGS_PER_TASK)
        embedded = (*layout.fields, *(f"history {kind}" for kind in layout.event_types))
        self._axes_of, self._settings = getattr(module, "axes", None), settings
        self.names = Names(layout.tasks, embedded, layout.dense)
        shape = Shape(n_tasks, len(embedded), settings.width, len(layout.dense))
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
        self.spread = Spread(len(layout.dense))
        for part in self.deep.modules():
            if isinstance(part, ParallelMlp):
                part.precision = precision
                part.sides = Sides.of(layout, settings.width, attention=settings.history == "attention")
            elif isinstance(part, ExpertDropout):
                part.rate = dropout

    @property
    def axes(self) -> Axes:
        """What each parameter's indices belong to.

        :raises ValueError: the architecture does not say.
        """
        if self._axes_of is None:
            raise ValueError(
                f"the model `{self._settings.name}` does not say what its weights belong to: give it `axes`"
            )
        tasks, dense = Axis(self.names.tasks), Axis(self.names.dense, is_input=True)
        deep: Axes = self._axes_of(self.names, self._settings)
        return {
            **{f"deep.{name}": axes for name, axes in deep.items()},
            "wide.weight": (tasks, dense),
            "common.weight": (None, dense),
            "gates": (Axis(self.names.embedded),),
            "spread.mean": (dense,),
            "spread.variance": (dense,),
            "spread.count": (),
        }

    def forward(self, embeddings: Tensor, wide: Tensor, dense: Tensor, viewers: Viewers | None = None) -> Tensor:
        """Residual logits: to be added to each task's base-rate logit.

        :param embeddings: shape ``[N, F + Y, embedding_width]``.
        :param wide: shape ``[N, n_wide]``, what the declared fields' weights add up to, the common one's last.
        :param dense: shape ``[N, D]``.
        :param viewers: of these rows, which the deep part then computes once each.
        :returns: shape ``[N, T]``.
        """
        embeddings, dense = self._weighted(embeddings), self.spread(dense)
        weights = self.wide.weight
        if self.common is not None:
            weights, wide = weights + self.common.weight, wide[:, :-1] + wide[:, -1:]
        logits: Tensor = torch.addmm(self.deep(embeddings, dense, viewers) + wide, dense, weights.t())
        return logits

    def field_weights(self) -> dict[str, float]:
        """How much of each id field and each type's history the deep part takes, by name; empty without gates."""
        if self.gates is None:
            return {}
        return dict(zip(self.names.embedded, self.gates.detach().abs().tolist(), strict=True))

    @property
    def gated(self) -> Gated | None:
        """The deep part, if its tasks weigh experts."""
        return self.deep if isinstance(self.deep, Gated) else None

    def expert_weights(self, embeddings: Tensor, dense: Tensor) -> Tensor | None:
        """How each task weighs the experts for these rows, shape ``[T, G, N]``; None where it weighs none."""
        return None if self.gated is None else self.gated.gates(self._weighted(embeddings), self.spread(dense))

    def _weighted(self, embeddings: Tensor) -> Tensor:
        return embeddings if self.gates is None else embeddings * self.gates[:, None]


def gate_entropies(gates: Tensor) -> Tensor:
    """Mean entropy of each task's gate, shape ``[T, G, N]`` to ``[T]``, in units of log G.

    1: all experts count the same, for every row; 0: each row is one expert's.
    """
    if gates.shape[1] == 1:
        return torch.zeros(len(gates))
    return -torch.xlogy(gates, gates).sum(1).mean(1) / math.log(gates.shape[1])


def load_network(network: Network, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Copy weights into a network of the same shape."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            value.copy_(torch.from_numpy(arrays[name]))
