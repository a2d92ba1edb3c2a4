"""The widest layer of a step, in the precision that the processor multiplies fastest."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ROW_STEP = 64


class FirstLayer(torch.autograd.Function):
    """``[embedded, dense] @ weight + bias`` of E networks and the linear outputs beside them, ReLU on the former.

    One product forward and one for each gradient. In bfloat16 the inputs, the weights and the incoming gradients are
    rounded to its 8 bits, and the products once more; sums run in float32, and the rest of the step stays in it. The
    dense features get no gradient: nobody needs it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embedded: Tensor,
        dense: Tensor,
        weight: Tensor,
        bias: Tensor,
        sizes: tuple[int, int],
        precision: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """``[N, C]``, ``[N, D]``, ``[C + D, E·H + G]``, ``[E·H + G]``, ``(E, H)`` to ``[E, N, H]`` and ``[N, G]``."""
        n_rows, n_embedded = embedded.shape
        inputs = _rows(n_rows, n_embedded + dense.shape[1], precision)  # [≥ N, C + D]
        inputs[:n_rows, :n_embedded] = embedded
        inputs[:n_rows, n_embedded:] = dense
        weight = weight.to(precision)
        outputs = (inputs @ weight)[:n_rows] + bias  # [N, E·H + G]
        hidden, beside = _parts(outputs, sizes)
        hidden = hidden.relu()
        ctx.save_for_backward(inputs, weight, hidden)
        ctx.n_embedded, ctx.sizes = n_embedded, sizes
        return hidden, beside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor, of_beside: Tensor) -> tuple[Tensor | None, ...]:
        """``[E, N, H]`` and ``[N, G]`` to the gradients of embeddings, weights and bias."""
        inputs, weight, hidden = ctx.saved_tensors
        n_rows = hidden.shape[1]
        gradient = _rows(n_rows, weight.shape[1], inputs.dtype)
        below, beside = _parts(gradient[:n_rows], ctx.sizes)
        below.copy_(torch.ops.aten.threshold_backward(of_hidden, hidden, 0))
        beside.copy_(of_beside)
        of_embedded = (gradient @ weight[: ctx.n_embedded].t())[:n_rows].float()
        of_weight = (inputs.t() @ gradient).float()
        return of_embedded, None, of_weight, gradient.sum(0, dtype=torch.float32), None, None


def _parts(outputs: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Views ``[E, N, H]`` and ``[N, G]`` of ``[N, E·H + G]``."""
    n_hidden = sizes[0] * sizes[1]
    return outputs[:, :n_hidden].view(-1, *sizes).transpose(0, 1), outputs[:, n_hidden:]


def _rows(n_rows: int, width: int, precision: torch.dtype) -> Tensor:
    """Room for that many rows. In bfloat16 a few more, of zeros: oneDNN compiles a kernel for each number of rows."""
    n_padded = n_rows if precision == torch.float32 else -(-n_rows // _ROW_STEP) * _ROW_STEP
    made = torch.empty((n_padded, width), dtype=precision)
    made[n_rows:] = 0
    return made
