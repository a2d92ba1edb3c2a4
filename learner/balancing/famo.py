"""FAMO: all tasks' losses fall at one rate (Liu et al., NeurIPS 2023, arXiv 2306.03792); lagged and smoothed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.balancing._base import checked, shares

LEARNING_RATE = 0.025
DECAY = 1e-3
BETAS = (0.9, 0.999)
LEAST_LOSS = 1e-8
SMOOTHING = 0.02
"""Share of a batch in the running mean of a task's log loss."""


class Balancing:
    """Weightₜ ∝ zₜ/Lₜ with z = softmax(ξ), and ξ falls for the task whose loss fell most.

    The paper evaluates a batch again after the step to see how far each loss fell. Here the next batch's loss is the
    one after (a pass less), which is mostly noise for one batch: what falls is the running mean of the log loss. The
    weights of a batch's tasks add up to what ``fixed`` gives them, not to 1.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights
        n_tasks = len(weights)
        self._xi = np.zeros(n_tasks)
        self._first, self._second, self._steps = np.zeros(n_tasks), np.zeros(n_tasks), np.zeros(n_tasks)
        self._log_loss = np.full(n_tasks, np.nan)  # unknown until the first label

    def __call__(
        self,
        losses: Tensor,
        counts: Tensor,
        rates: NDArray[np.float64],  # noqa: ARG002
        shared: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The total; before it, ξ learns how far each loss fell since the batch before."""
        seen = losses.detach().double().clamp(min=LEAST_LOSS).numpy()
        learned = (counts.numpy() > 0) & np.isfinite(seen)
        self._learn(np.log(np.where(learned, seen, 1.0)), learned)
        share = shares(self._weights, counts)
        z = np.exp(self._xi - self._xi.max())
        strength = share * torch.from_numpy(np.where(learned, z / z.sum() / np.where(learned, seen, 1.0), 0.0)).float()
        if not strength.any():
            return (losses * share).sum()
        return (losses * strength).sum() * (share.sum() / strength.sum())

    def _learn(self, log_losses: NDArray[np.float64], learned: NDArray[np.bool_]) -> None:
        before = np.where(np.isnan(self._log_loss), log_losses, self._log_loss)
        after = before + SMOOTHING * (log_losses - before)
        self._log_loss = np.where(learned, after, self._log_loss)
        fall = np.where(learned, before - after, 0.0)
        z = np.exp(self._xi - self._xi.max())
        z /= z.sum()
        # The transposed Jacobian of the softmax times the falls; weight decay as Adam's L2.
        gradient = z * (fall - z @ fall) + DECAY * self._xi
        beta1, beta2 = BETAS
        self._steps = self._steps + learned
        self._first = np.where(learned, beta1 * self._first + (1 - beta1) * gradient, self._first)
        self._second = np.where(learned, beta2 * self._second + (1 - beta2) * gradient**2, self._second)
        steps = np.maximum(self._steps, 1)
        step = self._first / (1 - beta1**steps) / (np.sqrt(self._second / (1 - beta2**steps)) + 1e-8)
        self._xi = self._xi - np.where(learned, LEARNING_RATE * step, 0.0)

    def state(self) -> dict[str, NDArray[Any]]:
        """ξ, Adam's moments, and the running log losses."""
        return {
            "xi": self._xi,
            "first": self._first,
            "second": self._second,
            "steps": self._steps,
            "log_loss": self._log_loss,
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`state`."""
        saved = checked(arrays, self.state(), "famo")
        self._xi, self._first, self._second = saved["xi"], saved["first"], saved["second"]
        self._steps, self._log_loss = saved["steps"], saved["log_loss"]
