"""Balancing by a Gramian weighting of TorchJD (arXiv 2406.16232) on the shared representation; an extra."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.balancing._base import checked, shares, task_gradients


class GramianBalancing:
    """From the tasks' gradients, as ``fixed`` weighs them, to coefficients of the tasks.

    With coefficients α the gradient at the shared representation is Σ αₜ·gₜ, exactly what the method makes of the g;
    everything below it follows by the chain rule. A tower, its task's alone, learns with αₜ times its gradient.
    Without conflict α is 1 and the total that of ``fixed``.

    :param weighting: from a Gramian ``[m, m]`` of float64 to ``[m]``; may draw from torch's generator.
    """

    def __init__(self, weights: Sequence[float], weighting: Callable[[Tensor], Tensor]) -> None:
        self._weights = weights
        self._weighting = weighting
        self._n_calls = np.zeros(1, np.int64)

    def __call__(
        self,
        losses: Tensor,
        counts: Tensor,
        rates: NDArray[np.float64],  # noqa: ARG002
        shared: Tensor | None = None,
    ) -> Tensor:
        """The total, see :class:`learner.balancing._base.Balancer`."""
        share = shares(self._weights, counts)
        weighted = losses * share
        tasks = torch.nonzero(share > 0).flatten().tolist()
        plain = weighted.sum()
        if len(tasks) < 2 or not torch.isfinite(plain):
            return plain
        gradients = task_gradients(weighted, shared, tasks).double()
        gramian = gradients @ gradients.t()  # [m, m]
        if not 0 < gramian.trace() < torch.inf:  # every tower is still zero, or a gradient overflows
            return plain
        # A random order of projections comes from the number of the call, so that a resumed run draws the same.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self._n_calls[0]))
            coefficients = self._weighting(gramian)
        self._n_calls += 1
        return (weighted[tasks] * coefficients.float()).sum()

    def state(self) -> dict[str, NDArray[Any]]:
        """How often it was called."""
        return {"n_calls": self._n_calls}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`state`."""
        self._n_calls = checked(arrays, self.state(), "torchjd")["n_calls"]


def require(name: str) -> None:
    """Say how to get the package, where it is missing.

    :raises ValueError: it cannot be imported.
    """
    try:
        from torchjd.aggregation import UPGradWeighting

        UPGradWeighting()  # looks for its solver, an extra of its own
    except ImportError as error:
        raise ValueError(
            f"The balancing `{name}` needs the package torchjd; found {error}. Install it with "
            "`pip install 'anabranch[torchjd]'`, or set another `train.balancing`."
        ) from error
