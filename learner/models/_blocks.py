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
    """E networks of ReLU layers over one shared input: ``[N, in]`` to ``[E, N, out]``.

    The first layer of all of them is a single product with a matrix of width E·H.
    """

    def __init__(self, count: int, n_in: int, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.count, self.n_out = count, layers[-1]
        self.first = nn.Linear(n_in, count * layers[0])
        nn.init.normal_(self.first.weight, std=math.sqrt(2.0 / n_in))
        nn.init.zeros_(self.first.bias)
        self.rest = nn.ModuleList(ParallelLinear(count, below, above) for below, above in itertools.pairwise(layers))

    def forward(self, inputs: Tensor) -> Tensor:
        """All networks on the same input."""
        hidden = torch.relu(self.first(inputs))  # [N, E·H]
        hidden = hidden.view(len(inputs), self.count, -1).transpose(0, 1)  # [E, N, H]
        for layer in self.rest:
            hidden = torch.relu(layer(hidden))
        return hidden


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
