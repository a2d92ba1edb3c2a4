"""Uncertainty weighting: Σ e^(−sₜ)·Lₜ + sₜ/2, with s learned (Kendall et al., CVPR 2018, arXiv 1705.07115)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.balancing._base import checked, shares

LEARNING_RATE = 0.01
MOST = 3.0


class Balancing:
    """Each task over its own loss, as if that were its noise: s settles at log 2Lₜ, within [−3, 3].

    For rare tasks, whose loss is small, that is close to dividing by the base rate's entropy (see docs/adr/0007).
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights
        self._s = torch.zeros(len(weights))

    def __call__(
        self,
        losses: Tensor,
        counts: Tensor,
        rates: NDArray[np.float64],  # noqa: ARG002
        shared: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The total with s as it is; then a step of gradient descent on s."""
        share, weights = shares(self._weights, counts), torch.exp(-self._s)
        total = (share * (weights * losses + self._s / 2)).sum()
        step = share * (0.5 - weights * losses.detach())
        self._s = (self._s - LEARNING_RATE * step.nan_to_num(0.0, 0.0, 0.0)).clamp(-MOST, MOST)
        return total

    def state(self) -> dict[str, NDArray[Any]]:
        """``s``."""
        return {"s": self._s.numpy()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`state`."""
        self._s = torch.from_numpy(checked(arrays, self.state(), "uncertainty")["s"])
