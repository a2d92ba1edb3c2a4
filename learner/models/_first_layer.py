"""The widest layer of a step, in the precision that the processor multiplies fastest, a viewer's part only once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from contracts.batch import Float32s, Int64s
from features.compiled import compiled_loop
from features.idmap import Integer
from learner.models._bfloat16 import Bits, bits, narrow, widen
from learner.viewers import Sides, Viewers

_ROW_STEP = 64


class FirstLayer(torch.autograd.Function):
    """``[embedded, dense] @ weight + bias`` of E networks and the linear outputs beside them, ReLU on the former.

    One product forward and one for each gradient. With viewers two smaller ones: a row's output is the sum of its
    viewer's and its item's, and a viewer's gradient, given to the first of its rows, the sum of its rows'. In bfloat16
    the inputs, the weights and the incoming gradients are rounded to its 8 bits, and the products once more; sums run
    in float32, and the rest of the step stays in it. The dense features get no gradient: nobody needs it.
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
        sides: Sides | None,
        viewers: Viewers | None,
    ) -> tuple[Tensor, Tensor]:
        """``[N, C]``, ``[N, D]``, ``[C + D, E·H + G]``, ``[E·H + G]``, ``(E, H)`` to ``[E, N, H]`` and ``[N, G]``."""
        (n_rows, n_embedded), every = embedded.shape, np.arange(len(embedded))
        if viewers is None or sides is None:
            whole = (slice(0, n_embedded), slice(n_embedded, len(weight)))
            products, of = [_Product(embedded, dense, every, weight, whole, precision)], every
        else:
            item = _Product(embedded, dense, every, weight, sides.item, precision)
            products = [item, _Product(embedded, dense, viewers.first, weight, sides.viewer, precision)]
            of = viewers.of
        outputs = [bits(product.outputs()) for product in products]
        hidden = np.empty((sizes[0], n_rows, sizes[1]), np.float32)
        beside = np.empty((n_rows, len(bias) - sizes[0] * sizes[1]), np.float32)
        _activate(outputs[0], outputs[-1], len(products) > 1, of, bias.numpy(), hidden, beside)
        ctx.products, ctx.hidden, ctx.of, ctx.shapes = products, hidden, of, (embedded.shape, weight.shape)
        return torch.from_numpy(hidden), torch.from_numpy(beside)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor, of_beside: Tensor) -> tuple[Tensor | None, ...]:
        """``[E, N, H]`` and ``[N, G]`` to the gradients of embeddings, weights and bias."""
        of_embedded, of_weight = (torch.zeros(shape) for shape in ctx.shapes)
        of_bias = np.zeros(ctx.shapes[1][1], np.float32)
        gradients = [_rows(product.n_rows, len(of_bias), product.precision) for product in ctx.products]
        _deactivate(
            of_hidden.contiguous().numpy(),
            ctx.hidden,
            of_beside.contiguous().numpy(),
            ctx.of,
            bits(gradients[0]),
            bits(gradients[-1]),
            len(gradients) > 1,
            of_bias,
            np.empty_like(of_bias),
        )
        for product, gradient in zip(ctx.products, gradients, strict=True):
            product.backward(gradient, of_embedded, of_weight)
        return of_embedded, None, of_weight, torch.from_numpy(of_bias), None, None, None, None


class _Product:
    """Some rows and columns of the inputs times their rows of the weights."""

    def __init__(
        self,
        embedded: Tensor,
        dense: Tensor,
        rows: Int64s,
        weight: Tensor,
        columns: Sequence[slice],
        precision: torch.dtype,
    ) -> None:
        n_embedded = embedded.shape[1]
        self.n_rows, self.precision = len(rows), precision
        self._chosen = rows
        self._embedded = [part for part in columns if part.start < n_embedded]
        self._columns = (*self._embedded, *(part for part in columns if part.start >= n_embedded))
        self._inputs = _rows(len(rows), sum(part.stop - part.start for part in columns), precision)
        inputs, at = bits(self._inputs), 0
        for part in self._columns:
            source, first = (embedded, part.start) if part.start < n_embedded else (dense, part.start - n_embedded)
            _gather(source.numpy(), rows, first, inputs, at, at := at + part.stop - part.start)
        self._weight = torch.cat([weight[part] for part in self._columns]).to(precision)

    def outputs(self) -> Tensor:
        """Shape ``[≥ N, E·H + G]``."""
        return self._inputs @ self._weight

    def backward(self, gradient: Tensor, of_embedded: Tensor, of_weight: Tensor) -> None:
        """Fill in its part of the embeddings' gradient and of the weights'; ``gradient`` is of :meth:`outputs`."""
        n_embedded, at = sum(part.stop - part.start for part in self._embedded), 0
        of_inputs = bits(gradient @ self._weight[:n_embedded].t())
        for part in self._embedded:
            _scatter(of_inputs, at, self._chosen, of_embedded.numpy(), part.start, part.stop)
            at += part.stop - part.start
        of_columns, at = self._inputs.t() @ gradient, 0
        for part in self._columns:
            of_weight[part] = of_columns[at : (at := at + part.stop - part.start)]


@compiled_loop
def _gather(source: Float32s, rows: Int64s, first: Integer, out: Bits, start: Integer, stop: Integer) -> None:
    for n in range(len(rows)):
        values, to = source[rows[n], first : first + stop - start], out[n, start:stop]
        for c in range(len(to)):
            to[c] = narrow(values[c], out)


@compiled_loop
def _scatter(values: Bits, first: Integer, rows: Int64s, out: Float32s, start: Integer, stop: Integer) -> None:
    for n in range(len(rows)):
        of, to = values[n, first : first + stop - start], out[rows[n], start:stop]
        for c in range(len(to)):
            to[c] = widen(of[c])


@compiled_loop
def _activate(
    of_rows: Bits, of_viewers: Bits, shared: bool, of: Int64s, bias: Float32s, hidden: Float32s, beside: Float32s
) -> None:
    """Sum and ReLU: ``[≥ N, E·H + G]``, where ``shared`` with ``[≥ U, E·H + G]``, to ``[E, N, H]`` and ``[N, G]``."""
    n_networks, n_rows, width = hidden.shape
    zero = np.float32(0.0)
    for n in range(n_rows):
        for e in range(n_networks):
            start, stop = e * width, (e + 1) * width
            of_row, of_viewer = of_rows[n, start:stop], of_viewers[of[n], start:stop]
            shift, to = bias[start:stop], hidden[e, n]
            if shared:
                for h in range(width):
                    to[h] = max(widen(of_row[h]) + widen(of_viewer[h]) + shift[h], zero)
            else:
                for h in range(width):
                    to[h] = max(widen(of_row[h]) + shift[h], zero)
        start = n_networks * width
        for g in range(beside.shape[1]):
            more = widen(of_viewers[of[n], start + g]) if shared else zero
            beside[n, g] = widen(of_rows[n, start + g]) + more + bias[start + g]


@compiled_loop
def _deactivate(
    of_hidden: Float32s,
    hidden: Float32s,
    of_beside: Float32s,
    of: Int64s,
    of_rows: Bits,
    of_viewers: Bits,
    shared: bool,
    of_bias: Float32s,
    summed: Float32s,
) -> None:
    """The gradient of :func:`_activate`: of each row's sum, added up for each viewer where ``shared``, and for all.

    :param summed: shape ``[E·H + G]``, to work in.
    """
    n_networks, n_rows, width = hidden.shape
    n_hidden, zero = n_networks * width, np.float32(0.0)
    for n in range(n_rows):
        if n == 0 or of[n] != of[n - 1]:
            summed[:] = zero
        for e in range(n_networks):
            start, stop = e * width, (e + 1) * width
            below, unit, to, total = of_hidden[e, n], hidden[e, n], of_rows[n, start:stop], summed[start:stop]
            for h in range(width):
                passed = below[h] if unit[h] > zero else zero
                to[h] = narrow(passed, of_rows)
                total[h] += passed
        for g in range(of_beside.shape[1]):
            of_rows[n, n_hidden + g] = narrow(of_beside[n, g], of_rows)
            summed[n_hidden + g] += of_beside[n, g]
        if n + 1 == n_rows or of[n + 1] != of[n]:
            to = of_viewers[of[n]]
            for o in range(len(summed)):
                of_bias[o] += summed[o]
                if shared:
                    to[o] = narrow(summed[o], of_viewers)


def _rows(n_rows: int, width: int, precision: torch.dtype) -> Tensor:
    """Room for that many rows. In bfloat16 a few more, of zeros: oneDNN compiles a kernel for each number of rows."""
    n_padded = n_rows if precision == torch.float32 else -(-n_rows // _ROW_STEP) * _ROW_STEP
    made = torch.empty((n_padded, width), dtype=precision)
    made[n_rows:] = 0
    return made
