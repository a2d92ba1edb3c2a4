"""Calibration per task: online Platt scaling (OPS; Gupta & Ramdas, ICML 2023, arXiv 2305.00070), a step per batch.

σ(a·z + b) instead of σ(z), (a, b) = (1, 0) at first, each label used once, after it was predicted. Where this differs
from the paper, and why:

- *One step for a batch's labels, not one for each*: the labels of one batch were scored by the same weights and often
  belong to the same users; a step per label follows each of them in turn and oscillates.
- *The step is A⁻¹·g without a factor 1/γ*, g = Σ(f − y)·[z, 1] and A = A₀ + Σ(f − y)²·[z, 1][z, 1]ᵀ: A then estimates
  the Fisher information, and the step is the recursive maximum-likelihood estimate. Its noise after n labels costs
  about 1/n nats a label, where the paper's γ = 0.1 steps ten times as far.
- *The residuals' square, as in the paper, not f·(1 − f)*: where rare positives are predicted far too low, the latter is
  near 0 and the step leaps.
- *A forgets*, by information and not by labels: a rare task's horizon is as many positives as a frequent one's.
- *A shift opens A again*: where the recent gradients do not fit chance (a score test over batches), A falls back to a
  hundredth of its horizon, so that a long-settled calibration follows within some thousand positives, not its horizon.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Float32s

Float64s = NDArray[np.float64]

_PRIOR = 25.0
"""A₀'s diagonal, in information as a positive of a rare task brings it: (a, b) is trusted to about ± 0.2 at first."""
_HORIZON = 10_000.0
"""Information that A keeps: the calibration ratio's standard error is 1/√(2 · this) = 0.7 % when all is settled."""
_RECENT = 150.0
"""Information that the score test looks back at,"""
_RECENT_BATCHES = 40.0
"""and the batches that it spans at least."""
_SURPRISE = 20.0
"""χ² with two degrees of freedom: exceeded by chance in 3 of 10 million looks; more where labels come in clumps."""
_SLOPES = (0.2, 5.0)
_MOST_SHIFT = 10.0


class OnlinePlatt:
    """The calibrators of T tasks."""

    def __init__(self, n_tasks: int) -> None:
        self._theta = np.tile([1.0, 0.0], (n_tasks, 1))  # [T, 2]: a, b
        self._information = np.zeros((n_tasks, 2, 2))
        self._recent_score = np.zeros((n_tasks, 2))
        self._recent_information = np.zeros((n_tasks, 2, 2))
        self._recent_variance = np.zeros((n_tasks, 2, 2))

    @property
    def slopes(self) -> Float64s:
        """Each task's a, shape ``[T]``."""
        return self._theta[:, 0].copy()

    @property
    def shifts(self) -> Float64s:
        """Each task's b, shape ``[T]``."""
        return self._theta[:, 1].copy()

    def logits(self, raw: Float32s) -> Float32s:
        """Calibrated logits of raw ones, shape ``[N, T]``; the order within a task stays."""
        calibrated: Float32s = (raw * self._theta[:, 0] + self._theta[:, 1]).astype(np.float32)
        return calibrated

    def update(self, task: int, raw: Float32s, labels: Float32s, late: Float32s | float = 0.0) -> None:
        """Learn from labels that were predicted before, shapes ``[n]``. A non-finite logit is left out.

        :param late: share of the positives that come as one more, behind their example as a negative: such a stream's
            odds are p / (1 − p + late·p) (:func:`learner.delay.delayed_logits`); shape ``[n]``, or one for all.
        """
        finite = np.isfinite(raw)
        z = np.where(finite, raw, 0.0).astype(np.float64)
        a, b = self._theta[task]
        p = 1.0 / (1.0 + np.exp(-np.clip(a * z + b, -30.0, 30.0)))
        # Log-loss of the stream's own probability; then the slope of its logit in that of p.
        residuals = (p / (1.0 + late * p) - labels) * ((1.0 - p) / (1.0 - p + late * p)) * finite
        squares = residuals * residuals
        score = np.array([residuals @ z, residuals.sum()])
        cross = squares @ z
        information = np.array([[squares @ (z * z), cross], [cross, squares.sum()]])

        self._forget(task, information[1, 1])
        self._recent_score[task] += score
        self._recent_information[task] += information
        # Labels of one batch are no independent witnesses: together they count as one.
        self._recent_variance[task] += information + np.outer(score, score)
        self._information[task] += information
        if self._surprised(task):
            recent = self._recent_information[task]
            self._information[task] = recent * min(_RECENT / recent[1, 1], 1.0)
            self._clear_recent(task)
        self._step(task, score)

    def reset(self, task: int) -> None:
        """Back to σ(z), to learn anew: what a drift reaction calls."""
        self._theta[task] = [1.0, 0.0]
        self._information[task] = 0.0
        self._clear_recent(task)

    def save(self) -> dict[str, NDArray[Any]]:
        """State as arrays."""
        return {
            "theta": self._theta,
            "information": self._information,
            "recent_score": self._recent_score,
            "recent_information": self._recent_information,
            "recent_variance": self._recent_variance,
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`save`.

        :raises ValueError: not a state of so many tasks.
        """
        for name, own in self.save().items():
            saved = arrays.get(name)
            if saved is None or saved.shape != own.shape:
                found = "nothing" if saved is None else f"shape {saved.shape}"
                raise ValueError(f"A calibration's state holds `{name}` of shape {own.shape}; found {found}.")
            own[...] = saved

    def _forget(self, task: int, information: float) -> None:
        self._information[task] *= np.exp(-information / _HORIZON)
        kept = np.exp(-min(information / _RECENT, 1.0 / _RECENT_BATCHES))
        self._recent_score[task] *= kept
        self._recent_information[task] *= kept
        self._recent_variance[task] *= kept * kept

    def _surprised(self, task: int) -> bool:
        score = self._recent_score[task]
        # Regularised: with one label, or one value of z, the variance has no inverse.
        chi_squared = float(score @ _solve(self._recent_variance[task] + np.eye(2), score))
        return chi_squared > _SURPRISE

    def _clear_recent(self, task: int) -> None:
        self._recent_score[task] = 0.0
        self._recent_information[task] = 0.0
        self._recent_variance[task] = 0.0

    def _step(self, task: int, score: Float64s) -> None:
        a_matrix = self._information[task] + _PRIOR * np.eye(2)
        a, b = self._theta[task] - _solve(a_matrix, score)
        inside = min(max(a, _SLOPES[0]), _SLOPES[1])
        # The nearest point in A's own norm: what a may not take, b takes over.
        b -= a_matrix[0, 1] / a_matrix[1, 1] * (inside - a)
        self._theta[task] = inside, min(max(b, -_MOST_SHIFT), _MOST_SHIFT)


def _solve(matrix: Float64s, vector: Float64s) -> Float64s:
    """Of a symmetric positive definite 2 × 2 matrix; LAPACK's call alone costs more."""
    (p, q), (_, r) = matrix
    x, y = vector
    solution: Float64s = np.array([r * x - q * y, p * y - q * x]) / (p * r - q * q)
    return solution
