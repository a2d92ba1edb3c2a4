"""Layers that the architectures share: E networks of one shape computed as one matrix product."""

import itertools
import math

import torch
from torch import Tensor, nn


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

    The first layer of all of them is one product, of the embeddings and of the dense features apart: the dense features
    need no gradient, and nothing is concatenated.

    :param n_beside: linear outputs of the same input (gates), zero at first.
    """

    def __init__(
        self, count: int, n_embedded: int, n_dense: int, layers: tuple[int, ...], *, n_beside: int = 0
    ) -> None:
        super().__init__()
        self.count, self.n_out = count, layers[-1]
        n_hidden = count * layers[0]
        self.embedded = nn.Parameter(torch.zeros(n_embedded, n_hidden + n_beside))
        self.dense = nn.Parameter(torch.zeros(n_dense, n_hidden + n_beside))
        self.bias = nn.Parameter(torch.zeros(n_hidden + n_beside))
        with torch.no_grad():
            for weight in (self.embedded, self.dense):
                weight[:, :n_hidden].normal_(std=math.sqrt(2.0 / (n_embedded + n_dense)))
        self._n_hidden = n_hidden
        self.rest = nn.ModuleList(ParallelLinear(count, below, above) for below, above in itertools.pairwise(layers))

    def forward(self, embedded: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, C·d]`` and ``[N, D]`` to ``[E, N, H]`` and ``[N, n_beside]``."""
        first = torch.addmm(torch.addmm(self.bias, dense, self.dense), embedded, self.embedded)
        hidden = torch.relu(first[:, : self._n_hidden])  # [N, E·H]
        hidden = hidden.view(len(first), self.count, self._n_hidden // self.count).transpose(0, 1)  # [E, N, H]
        for layer in self.rest:
            hidden = torch.relu(layer(hidden))
        return hidden, first[:, self._n_hidden :]


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
