"""GradNorm: gradients of comparable norm, larger for tasks that lag (Chen et al., ICML 2018, arXiv 1711.02257)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.balancing._base import checked, shares, task_gradients

LEARNING_RATE = 0.025
ASYMMETRY = 1.5
EVERY = 8
"""Batches between two looks at the norms: each is a backward pass a task."""
SMOOTHING = 0.1
"""Share of such a batch in a task's running loss."""


class Balancing:
    """w learns to make ‖wₜ·∇Lₜ‖ at the shared representation the mean norm times (how far t lags)^1.5.

    Where this differs from the paper: how far a task lags is its running normalised entropy over the tasks' mean, since
    the base rate's entropy is the loss each task starts with; w takes its steps in log w, in units of the mean norm, so
    that it stays positive; and only each eighth batch is looked at. Weights of the settings multiply the result; ∇Lₜ
    counts a task by its share of the rows.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights
        self._log_w = np.zeros(len(weights))
        self._ne = np.full(len(weights), np.nan)  # unknown until the first label
        self._n_batches = np.zeros(1, np.int64)

    def __call__(
        self, losses: Tensor, counts: Tensor, rates: NDArray[np.float64], shared: Tensor | None = None
    ) -> Tensor:
        """The total with w as it is; then, now and again, a step of w by the norms of this batch."""
        share = shares(self._weights, counts)
        total = (losses * share * torch.from_numpy(np.exp(self._log_w)).float()).sum()
        tasks = np.flatnonzero((share > 0).numpy() & losses.detach().isfinite().numpy())
        if len(tasks) > 1:
            if self._n_batches[0] % EVERY == 0:
                self._learn(tasks, losses, counts, rates, shared)
            self._n_batches += 1
        return total

    def _learn(
        self,
        tasks: NDArray[np.int64],
        losses: Tensor,
        counts: Tensor,
        rates: NDArray[np.float64],
        shared: Tensor | None,
    ) -> None:
        share = (counts / counts.max()).numpy()[tasks]
        norms = task_gradients(losses, shared, tasks.tolist()).norm(dim=1).numpy() * share
        entropy = -(rates * np.log(rates) + (1 - rates) * np.log1p(-rates))[tasks]
        ne = losses.detach().numpy()[tasks] / entropy
        before = np.where(np.isnan(self._ne[tasks]), ne, self._ne[tasks])
        self._ne[tasks] = before + SMOOTHING * (ne - before)
        lag = self._ne[tasks] / self._ne[tasks].mean()
        weighted = norms * np.exp(self._log_w[tasks])
        if not weighted.mean() > 0:
            return
        target = weighted.mean() * lag**ASYMMETRY
        # d/d log w of Σ|weighted − target| with the target held still, over the mean norm.
        self._log_w[tasks] -= LEARNING_RATE * np.sign(weighted - target) * weighted / weighted.mean()
        self._log_w -= np.log(np.exp(self._log_w).mean())

    def weights(self) -> NDArray[np.float64]:
        """Shape ``[T]``, their sum is T; all 1 at first."""
        weights: NDArray[np.float64] = np.exp(self._log_w)
        return weights

    def state(self) -> dict[str, NDArray[Any]]:
        """w, the running normalised entropies, and the batches seen."""
        return {"log_w": self._log_w, "ne": self._ne, "n_batches": self._n_batches}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`state`."""
        saved = checked(arrays, self.state(), "gradnorm")
        self._log_w, self._ne, self._n_batches = saved["log_w"], saved["ne"], saved["n_batches"]
