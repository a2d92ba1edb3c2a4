"""Layers that the architectures share: E networks of one shape computed as one matrix product."""

import itertools
import math

import torch
from torch import Tensor, nn

from learner.models._first_layer import FirstLayer
from learner.models._mixture import Mixture
from learner.viewers import Sides, Viewers


class ParallelLinear(nn.Module):
    """E linear layers side by side: ``[E, N, in]`` to ``[E, N, out]`` by one batched product."""

    def __init__(self, count: int, n_in: int, n_out: int, *, zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(count, 1, n_out))
        if not zero:
            # He et al. 2015, for ReLU: variance 2 / fan-in.
            nn.init.normal_(self.weight, std=math.sqrt(2.0 / n_in))

    def forward(self, inputs: Tensor) -> Tensor:
        """Each layer on its own input."""
        return torch.baddbmm(self.bias, inputs, self.weight)


class ParallelMlp(nn.Module):
    """E networks of ReLU layers over one shared input, and linear outputs beside them.

    The first layer of all of them is one product (:class:`FirstLayer`), in ``precision``; where rows share a viewer and
    ``sides`` tells his columns, he is computed once.

    :param n_beside: linear outputs of the same input (gates), zero at first.
    """

    precision = torch.float32
    sides: Sides | None = None

    def __init__(
        self, count: int, n_embedded: int, n_dense: int, layers: tuple[int, ...], *, n_beside: int = 0
    ) -> None:
        super().__init__()
        self.n_out = layers[-1]
        n_hidden = count * layers[0]
        self.weight = nn.Parameter(torch.zeros(n_embedded + n_dense, n_hidden + n_beside))
        self.bias = nn.Parameter(torch.zeros(n_hidden + n_beside))
        with torch.no_grad():
            self.weight[:, :n_hidden].normal_(std=math.sqrt(2.0 / (n_embedded + n_dense)))
        self._sizes = (count, layers[0])
        self.rest = nn.ModuleList(ParallelLinear(count, below, above) for below, above in itertools.pairwise(layers))

    def forward(self, embedded: Tensor, dense: Tensor, viewers: Viewers | None = None) -> tuple[Tensor, Tensor]:
        """``[N, C·d]`` and ``[N, D]`` to ``[E, N, H]`` and ``[N, n_beside]``."""
        hidden, beside = FirstLayer.apply(
            embedded, dense, self.weight, self.bias, self._sizes, self.precision, self.sides, viewers
        )
        for layer in self.rest:
            hidden = torch.relu(layer(hidden))
        return hidden, beside


class ExpertDropout(nn.Module):
    """In training, gates that leave out some experts, for each row and task by chance; the others share the weight.

    As on the gates of Zhao et al. 2019 (RecSys): no expert may rely on never being left out.
    """

    rate = 0.0

    def forward(self, gates: Tensor) -> Tensor:
        """Shape ``[T, E, N]``; a row whose experts were all left out sees none."""
        if not self.training or not self.rate:
            return gates
        kept = gates * (torch.rand(gates.shape) >= self.rate)
        return kept / kept.sum(1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)


def gate_weights(beside: Tensor, n_gates: int) -> Tensor:
    """Each gate's softmax over its experts: ``[N, G·E]`` to ``[G, E, N]``."""
    # A softmax over four numbers at a time is slow; over rows that lie side by side it is vectorised.
    return beside.t().reshape(n_gates, beside.shape[1] // n_gates, -1).softmax(1)


def mixtures(beside: Tensor, experts: Tensor, n_tasks: int, dropout: ExpertDropout) -> Tensor:
    """What each task sees of the experts: their sum, weighted by the softmax over its gate.

    :param beside: the gates' logits, shape ``[N, T·E]``.
    :param experts: shape ``[E, N, H]``.
    :returns: shape ``[T, N, H]``.
    """
    mixed: Tensor = Mixture.apply(dropout(gate_weights(beside, n_tasks)), experts)
    return mixed


class Towers(nn.Module):
    """One tower per task: ``[T, N, in]`` to ``[N, T]``, zero at first."""

    def __init__(self, n_tasks: int, n_in: int, width: int) -> None:
        super().__init__()
        self.hidden = ParallelLinear(n_tasks, n_in, width)
        self.out = ParallelLinear(n_tasks, width, 1, zero=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of each task from its own input."""
        logits: Tensor = self.out(torch.relu(self.hidden(inputs)))  # [T, N, 1]
        return logits.squeeze(2).t()


class CommonTowers(nn.Module):
    """A tower per task on top of one that all have in common: ``[T + 1, N, in]`` to ``[N, T]``, zero at first.

    What makes an item worth a view makes it worth a purchase, too: a rare task starts from what the frequent ones know,
    and learns how it differs (as Evgeniou & Pontil, KDD 2004, have it for linear models). The last input is the
    common tower's.
    """

    def __init__(self, n_tasks: int, n_in: int, width: int) -> None:
        super().__init__()
        self.towers = Towers(n_tasks + 1, n_in, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of each task from its own input and the common one."""
        logits: Tensor = self.towers(inputs)  # [N, T + 1]
        return logits[:, :-1] + logits[:, -1:]
