"""Fixed weights: the plain weighted sum of the tasks' losses."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Balancing:
    """Weightₜ as the settings say, each task by its share of the batch's labels.

    Sums of losses match gradient surgery once tuned (Kurin et al. 2022). A task with few labels in a batch counts for
    as many rows as it has: a mean over three rows must not move the model as much as a mean over a thousand. Dividing
    by the base rate's entropy as well was worse for the rare task (docs/adr/0007).
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = torch.tensor(list(weights), dtype=torch.float32)

    def __call__(self, losses: Tensor, counts: Tensor, rates: NDArray[np.float64]) -> Tensor:  # noqa: ARG002
        """The total, see :class:`learner.balancing._base.Balancer`."""
        return (losses * self._weights * counts).sum() / counts.max().clamp(min=1)
