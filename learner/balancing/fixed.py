"""Fixed weights: the plain weighted sum of the tasks' losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from learner.balancing._base import shares


class Balancing:
    """Weightₜ as the settings say, each task by its share of the batch's labels.

    Sums of losses match gradient surgery once tuned (Kurin et al. 2022). A task with few labels in a batch counts for
    as many rows as it has: a mean over three rows must not move the model as much as a mean over a thousand. Dividing
    by the base rate's entropy as well was worse for the rare task (docs/adr/0007).
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights

    def __call__(
        self,
        losses: Tensor,
        counts: Tensor,
        rates: NDArray[np.float64],  # noqa: ARG002
        shared: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The total, see :class:`learner.balancing._base.Balancer`."""
        return (losses * shares(self._weights, counts)).sum()

    def state(self) -> dict[str, NDArray[Any]]:
        """Nothing."""
        return {}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`state`."""
