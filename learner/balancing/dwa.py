"""Dynamic weight average: more for a task whose loss falls more slowly (Liu et al., CVPR 2019, arXiv 1803.10704)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.balancing._base import checked, shares

TEMPERATURE = 2.0
BATCHES = (100.0, 400.0)
"""Length of the fast and of the slow mean, in batches that have labels of the task."""


class Balancing:
    """wₜ = T·softmax(rₜ / 2), r = recent loss / loss before that.

    On a stream there are no epochs to compare: the two losses are a fast and a slow running mean over the labels.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights
        self._sums = np.zeros((2, len(weights)))  # fast, slow
        self._counts = np.zeros((2, len(weights)))

    def __call__(
        self,
        losses: Tensor,
        counts: Tensor,
        rates: NDArray[np.float64],  # noqa: ARG002
        shared: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The total by the losses so far; then this batch's are counted."""
        weights = torch.from_numpy(self.weights().astype(np.float32))
        total = (losses * shares(self._weights, counts) * weights).sum()
        seen, n = losses.detach().double().numpy(), counts.numpy()
        learned = (n > 0) & np.isfinite(seen)
        kept = np.exp(-1.0 / np.array(BATCHES))[:, None]
        self._sums = np.where(learned, self._sums * kept + n * seen, self._sums)
        self._counts = np.where(learned, self._counts * kept + n, self._counts)
        return total

    def weights(self) -> NDArray[np.float64]:
        """Shape ``[T]``, their sum is T; all 1 at first."""
        fast, slow = self._sums / np.maximum(self._counts, 1.0)
        ratio = np.where(slow > 0, fast / np.where(slow > 0, slow, 1.0), 1.0)
        strength = np.exp(ratio / TEMPERATURE)
        weights: NDArray[np.float64] = len(strength) * strength / strength.sum()
        return weights

    def state(self) -> dict[str, NDArray[Any]]:
        """The running sums."""
        return {"sums": self._sums, "counts": self._counts}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`state`."""
        saved = checked(arrays, self.state(), "dwa")
        self._sums, self._counts = saved["sums"], saved["counts"]
