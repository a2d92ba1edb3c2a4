"""What a balancing method is given and gives. A module here defines ``Balancing(weights)`` with this protocol."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Balancer(Protocol):
    """From a loss per task to the one that is minimised."""

    def __call__(self, losses: Tensor, counts: Tensor, rates: NDArray[np.float64]) -> Tensor:
        """The total.

        :param losses: shape ``[T]``, mean over the rows whose label is known.
        :param counts: shape ``[T]``, how many those are.
        :param rates: shape ``[T]``, the tasks' base rates.
        """
