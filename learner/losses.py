"""Losses over rows of which some labels are not known, and the base rate that every tower starts from."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from contracts.batch import Bools, Float32s, Int64s

_PRIOR_POSITIVES = 0.5
_PRIOR_EXAMPLES = 10.0
_HORIZON = 200_000.0
# A task whose positives or negatives stay away for good keeps a finite logit.
_LEAST_RATE = 1e-7


def masked_bce(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Mean binary cross-entropy per task, over the rows whose label is known.

    :param logits: shape ``[N, T]``.
    :param labels: shape ``[N, T]``, in {0, 1}; ignored where ``known`` is false.
    :param known: shape ``[N, T]``, bool.
    :returns: shape ``[T]``; zero for a task with no known label.
    :raises ValueError: the three shapes differ.
    """
    if not logits.shape == labels.shape == known.shape:
        raise ValueError(
            "logits, labels and known must have one shape; "
            f"found {tuple(logits.shape)}, {tuple(labels.shape)}, {tuple(known.shape)}."
        )
    losses: Tensor = _MaskedBce.apply(logits, labels, known)
    return losses


class _MaskedBce(torch.autograd.Function):
    """Loss and gradient in one pass: as torch operations they are two dozen small ones."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        losses, gradient = _bce(logits.numpy(), labels.numpy(), known.numpy())
        ctx.save_for_backward(torch.from_numpy(gradient))
        return torch.from_numpy(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_losses: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * of_losses, None, None


@njit(cache=True, nogil=True)
def _bce(logits: Float32s, labels: Float32s, known: Bools) -> tuple[Float32s, Float32s]:
    n_rows, n_tasks = logits.shape
    # Whatever stands where a label is not known, NaN too, must reach neither the loss nor its gradient.
    gradient = np.zeros((n_rows, n_tasks), np.float32)
    totals = np.zeros(n_tasks)
    counts = np.zeros(n_tasks)
    one, zero = np.float32(1.0), np.float32(0.0)
    for n in range(n_rows):
        for t in range(n_tasks):
            if known[n, t]:
                z, label = logits[n, t], labels[n, t]
                decay = np.exp(-abs(z))
                p = (one if z > zero else decay) / (one + decay)
                totals[t] += max(z, zero) - z * label + np.log1p(decay)
                gradient[n, t] = p - label
                counts[t] += 1
    counts = np.maximum(counts, 1.0)
    gradient /= counts.astype(np.float32)
    return (totals / counts).astype(np.float32), gradient


def immediate_logits(logits: Tensor, immediate: Tensor) -> Tensor:
    """The link of fake negatives that are calibrated in the loss (ALGORITHMS §1 A; Monolith's ``sample_bias``).

    Every exposure is learned at once as a negative and each outcome as one positive more, so the stream's odds are
    p / 1: training on log p as the logit makes σ(logits) the true p, whenever the outcomes come.

    :param logits: shape ``[N, T]``.
    :param immediate: shape ``[T]``, bool: the tasks learned this way; the others' logits stay as they are.
    """
    scored: Tensor = _Immediate.apply(logits, immediate)
    return scored


class _Immediate(torch.autograd.Function):
    """Value and slope in one pass, as :class:`_MaskedBce`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, immediate: Tensor) -> Tensor:
        scored, slope = _immediate(logits.numpy(), immediate.numpy())
        ctx.save_for_backward(torch.from_numpy(slope))
        return torch.from_numpy(scored)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_scored: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * of_scored, None


@njit(cache=True, nogil=True)
def _immediate(logits: Float32s, immediate: Bools) -> tuple[Float32s, Float32s]:
    """log σ(z) and its slope 1 − σ(z) for the immediate tasks, z and 1 for the others."""
    scored, slope = np.empty(logits.shape, np.float32), np.empty(logits.shape, np.float32)
    one, zero = np.float32(1.0), np.float32(0.0)
    for n in range(logits.shape[0]):
        for t in range(logits.shape[1]):
            z = logits[n, t]
            if immediate[t]:
                decay = np.exp(-abs(z))
                scored[n, t] = min(z, zero) - np.log1p(decay)
                slope[n, t] = (decay if z > zero else one) / (one + decay)
            else:
                scored[n, t], slope[n, t] = z, one
    return scored, slope


@njit(cache=True, nogil=True)
def count_labels(labels: Float32s, known: Bools) -> tuple[Int64s, Int64s]:
    """How many labels of each task are known, and how many of those are positive: shapes ``[N, T]`` to ``[T]``."""
    n_rows, n_tasks = labels.shape
    counts, positives = np.zeros(n_tasks, np.int64), np.zeros(n_tasks, np.int64)
    for n in range(n_rows):
        for t in range(n_tasks):
            counts[t] += known[n, t]
            positives[t] += known[n, t] and labels[n, t] > 0.5
    return counts, positives


class BaseRates:
    """Each task's running share of positives, as the logit that its tower starts from.

    A plain mean at first, over about the last two hundred thousand examples later. Not learned by gradient, so that NE
    is about 1 on the first day (DESIGN §3).
    """

    def __init__(self, n_tasks: int) -> None:
        self._positives = np.full(n_tasks, _PRIOR_POSITIVES)
        self._examples = np.full(n_tasks, _PRIOR_EXAMPLES)

    @property
    def rates(self) -> NDArray[np.float64]:
        """Shares of positives, shape ``[T]``."""
        rates: NDArray[np.float64] = np.clip(self._positives / self._examples, _LEAST_RATE, 1.0 - _LEAST_RATE)
        return rates

    @property
    def logits(self) -> Tensor:
        """Their logits, shape ``[T]``."""
        rates = self.rates
        return torch.from_numpy(np.log(rates / (1.0 - rates)).astype(np.float32))

    def update(self, counts: Int64s, positives: Int64s, late: Int64s | int = 0) -> None:
        """Take in a batch's labels.

        :param counts: how many of each task are known, shape ``[T]``; ``positives``: how many of those are positive.
        :param late: positives whose example was counted before, as a negative: they are no examples of their own.
        """
        self._positives += positives
        self._examples += counts - late
        kept = np.minimum(_HORIZON / self._examples, 1.0)
        self._positives *= kept
        self._examples *= kept

    def save(self) -> dict[str, NDArray[Any]]:
        """State as arrays."""
        return {"positives": self._positives, "examples": self._examples}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`save`."""
        self._positives, self._examples = arrays["positives"].copy(), arrays["examples"].copy()
