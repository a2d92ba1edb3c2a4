"""Fixed weights, normalised by the prior: each task's loss in units of its base rate's entropy (ALGORITHMS §4)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LEAST_ENTROPY = 0.02


class Balancing:
    """weightₜ / H(base rateₜ), and each task by its share of the batch's labels.

    Sums of losses match gradient surgery once tuned (Kurin et al. 2022). A task with few labels in a batch counts for
    as many rows as it has: a mean over three rows must not move the model as much as a mean over a thousand.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = np.array(weights, np.float64)

    def __call__(self, losses: Tensor, counts: Tensor, rates: NDArray[np.float64]) -> Tensor:
        """The total, see :class:`learner.balancing._base.Balancer`."""
        entropy = -(rates * np.log(rates) + (1.0 - rates) * np.log1p(-rates))
        weights = torch.from_numpy((self._weights / np.maximum(entropy, _LEAST_ENTROPY)).astype(np.float32))
        return (losses * weights * counts).sum() / counts.max().clamp(min=1)
