"""Losses over rows of which some labels are not known, and the base rate that every tower starts from."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from contracts.batch import Bools, Float32s

_PRIOR_POSITIVES = 0.5
_PRIOR_EXAMPLES = 10.0
_HORIZON = 200_000.0


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
    losses = binary_cross_entropy_with_logits(logits, labels, reduction="none") * known
    return losses.sum(0) / known.sum(0).clamp(min=1)


class BaseRates:
    """Each task's running share of positives, as the logit that its tower starts from.

    A plain mean at first, over about the last two hundred thousand examples later. Not learned by gradient, so that NE is
    about 1 on the first day (DESIGN §3).
    """

    def __init__(self, n_tasks: int) -> None:
        self._positives = np.full(n_tasks, _PRIOR_POSITIVES)
        self._examples = np.full(n_tasks, _PRIOR_EXAMPLES)

    @property
    def rates(self) -> NDArray[np.float64]:
        """Shares of positives, shape ``[T]``."""
        rates: NDArray[np.float64] = self._positives / self._examples
        return rates

    @property
    def logits(self) -> Tensor:
        """Their logits, shape ``[T]``."""
        rates = self.rates
        return torch.from_numpy(np.log(rates / (1.0 - rates)).astype(np.float32))

    def update(self, labels: Float32s, known: Bools) -> None:
        """Take in the labels of a batch, shapes ``[N, T]``."""
        self._positives += (labels * known).sum(0)
        self._examples += known.sum(0)
        kept = np.minimum(_HORIZON / self._examples, 1.0)
        self._positives *= kept
        self._examples *= kept

    def save(self) -> dict[str, NDArray[Any]]:
        """State as arrays."""
        return {"positives": self._positives, "examples": self._examples}

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`save`."""
        self._positives, self._examples = arrays["positives"].copy(), arrays["examples"].copy()
