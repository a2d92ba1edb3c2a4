"""Fixed weights over the entropy of each task's base rate: losses are added in units of normalised entropy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.balancing._base import shares


class Balancing:
    """Weightₜ / H(pₜ), p the running base rate: a rare task counts as much as one of even odds.

    H(p) = −p·log p − (1 − p)·log(1 − p) is the loss of predicting the base rate: each task's loss starts near 1
    (ALGORITHMS §4). Its gradients grow by the same factor: why ``fixed`` does without is in docs/adr/0007 and 0031.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights

    def __call__(
        self,
        losses: Tensor,
        counts: Tensor,
        rates: NDArray[np.float64],
        shared: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The total, see :class:`learner.balancing._base.Balancer`."""
        entropy = -(rates * np.log(rates) + (1 - rates) * np.log1p(-rates))
        return (losses * shares(self._weights, counts) / torch.from_numpy(entropy.astype(np.float32))).sum()

    def state(self) -> dict[str, NDArray[Any]]:
        """Nothing: the base rates are the trainer's."""
        return {}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`state`."""
