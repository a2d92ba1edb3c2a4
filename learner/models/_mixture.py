"""Mixtures of experts in one pass: as torch operations they cost a sixth of a step in temporary tensors."""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from contracts.batch import Float32s


class Mixture(torch.autograd.Function):
    """Each task's weighted sum of the experts: Σₑ gates[t, e, n] · experts[e, n, :]."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, experts: Tensor) -> Tensor:
        """``[T, E, N]`` and ``[E, N, H]`` to ``[T, N, H]``."""
        ctx.save_for_backward(gates, experts)
        mixed = np.empty((len(gates), *experts.shape[1:]), np.float32)
        _mix(gates.numpy(), experts.numpy(), mixed)
        return torch.from_numpy(mixed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """``[T, N, H]`` to the gradients of gates and experts."""
        gates, experts = ctx.saved_tensors
        of_gates, of_experts = torch.empty_like(gates), torch.empty_like(experts)
        _mix_back(gates.numpy(), experts.numpy(), gradient.numpy(), of_gates.numpy(), of_experts.numpy())
        return of_gates, of_experts


@njit(cache=True, nogil=True, fastmath=True)
def _mix(gates: Float32s, experts: Float32s, mixed: Float32s) -> None:
    n_tasks, n_experts, n_rows = gates.shape
    mixed[:] = 0.0
    for t in range(n_tasks):
        for e in range(n_experts):
            for n in range(n_rows):
                gate = gates[t, e, n]
                for h in range(experts.shape[2]):
                    mixed[t, n, h] += gate * experts[e, n, h]


@njit(cache=True, nogil=True, fastmath=True)
def _mix_back(gates: Float32s, experts: Float32s, gradient: Float32s, of_gates: Float32s, of_experts: Float32s) -> None:
    n_tasks, n_experts, n_rows = gates.shape
    of_experts[:] = 0.0
    for t in range(n_tasks):
        for e in range(n_experts):
            for n in range(n_rows):
                gate, of_gate = gates[t, e, n], np.float32(0.0)
                for h in range(experts.shape[2]):
                    of_gate += gradient[t, n, h] * experts[e, n, h]
                    of_experts[e, n, h] += gate * gradient[t, n, h]
                of_gates[t, e, n] = of_gate
