"""Losses over rows of which some labels are not known, and the base rate that every tower starts from."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from contracts.batch import Bools, Float32s

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
    # Whatever stands where a label is not known, NaN too, must reach neither the loss nor its gradient.
    labels = labels.masked_fill(~known, 0.0)
    losses = binary_cross_entropy_with_logits(logits, labels, reduction="none") * known
    return losses.sum(0) / known.sum(0).clamp(min=1)


def immediate_logits(logits: Tensor, immediate: Tensor) -> Tensor:
    """The link of fake negatives that are calibrated in the loss (ALGORITHMS §1 A; Monolith's ``sample_bias``).

    Every exposure is learned at once as a negative and each outcome as one positive more, so the stream's odds are
    p / 1: training on log p as the logit makes σ(logits) the true p, whenever the outcomes come.

    :param logits: shape ``[N, T]``.
    :param immediate: shape ``[T]``, bool: the tasks learned this way; the others' logits stay as they are.
    """
    return torch.where(immediate, logsigmoid(logits), logits)


class BaseRates:
    """Each task's running share of positives, as the logit that its tower starts from.

    A plain mean at first, over about the last two hundred thousand examples later. Not learned by gradient, so that NE
    is about 1 on the first day (DESIGN §3).

    :param immediate: shape ``[T]``: tasks whose every exposure is learned at once as a negative, and its outcome as one
        positive more, which is then no example of its own.
    """

    def __init__(self, n_tasks: int, immediate: Bools) -> None:
        self._immediate = immediate
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

    def update(self, labels: Float32s, known: Bools) -> None:
        """Take in the labels of a batch, shapes ``[N, T]``."""
        positives = np.sum(labels, 0, np.float64, where=known)
        self._positives += positives
        self._examples += known.sum(0) - np.where(self._immediate, positives, 0.0)
        kept = np.minimum(_HORIZON / self._examples, 1.0)
        self._positives *= kept
        self._examples *= kept

    def save(self) -> dict[str, NDArray[Any]]:
        """State as arrays."""
        return {"positives": self._positives, "examples": self._examples}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`save`."""
        self._positives, self._examples = arrays["positives"].copy(), arrays["examples"].copy()
