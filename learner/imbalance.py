"""Class weight and focal loss for rare positives, calibration kept: the loss alone sees a transformed logit.

Both bend the loss, and with it what its minimiser means. With weight w on positives and focus γ, the q that minimises

    −w·η·(1 − q)^γ·log q − (1 − η)·q^γ·log(1 − q)

for a true probability η satisfies  T(logit q) = logit η + log w,  where

    T(ℓ) = ℓ − log φ(σ(ℓ)) + log φ(σ(−ℓ)),   φ(v) = (1 − v)^γ − γ·(1 − v)^(γ−1)·v·log v.

γ = 0: T is the identity, training odds are w times the true ones. w = 1: the closed form of Charoenphakdee et al., "On
Focal Loss for Class-Posterior Probability Estimation", CVPR 2021 (arXiv 2011.09172). So the network's logit z stays the
logit of η, as base rates, metrics and scoring take it, and the loss is computed at ℓ = T⁻¹(z + log w).

When calibration holds: at the minimum, wherever the model can reach the true log-odds. Plain cross-entropy with a free
intercept also matches Σp to Σy for a model that cannot; these losses do not: they trade it for fit on the positives.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, softplus

_NEWTON_STEPS = 6
# Beyond it −log q = 1 − q = e^−ℓ to float32's precision, and their ratio would be lost.
_SATURATED = 12.0


def masked_focal(logits: Tensor, labels: Tensor, known: Tensor, positive_weights: Tensor, gammas: Tensor) -> Tensor:
    """Mean weighted focal loss per task, over the rows whose label is known.

    With weight 1 and γ 0 it is :func:`learner.losses.masked_bce`.

    :param logits: shape ``[N, T]``, of the stream's own odds: after the delay link, where a task has one.
    :param labels: shape ``[N, T]``, in {0, 1}; ignored where ``known`` is false.
    :param known: shape ``[N, T]``, bool.
    :param positive_weights: shape ``[T]``, above 0.
    :param gammas: shape ``[T]``, at least 0.
    :returns: shape ``[T]``; zero for a task with no known label.
    """
    positive = labels.masked_fill(~known, 0.0) > 0.5
    trained = focal_inverse(logits + positive_weights.log(), gammas)
    right = torch.where(positive, trained, -trained)  # logit of the probability given to what happened
    weights = torch.where(positive, positive_weights, 1.0) * known
    losses = weights * (gammas * logsigmoid(-right)).exp() * softplus(-right)
    return losses.sum(0) / known.sum(0).clamp(min=1)


def focal_map(logits: Tensor, gammas: Tensor) -> Tensor:
    """T: from the logit that a focal loss trains to the logit of the probability it stands for.

    :param logits: shape ``[N, T]``; ``gammas``: ``[T]``.
    """
    return _map(logits, gammas)[0]


def focal_inverse(logits: Tensor, gammas: Tensor) -> Tensor:
    """T⁻¹, differentiable, by Newton's method: T is close to a line.

    :param logits: shape ``[N, T]``; ``gammas``: ``[T]``.
    """
    if not gammas.any():
        return logits
    found: Tensor = _Inverse.apply(logits, gammas)
    return found


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, gammas: Tensor) -> Tensor:
        found = logits / _map(torch.zeros_like(gammas), gammas)[1]
        for _ in range(_NEWTON_STEPS):
            value, slope = _map(found, gammas)
            found = found - (value - logits) / slope
        ctx.save_for_backward(_map(found, gammas)[1])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradient / slope, None


def _map(logits: Tensor, gammas: Tensor) -> tuple[Tensor, Tensor]:
    """T and its slope."""
    above, above_slope = _log_phi(logits, gammas)
    below, below_slope = _log_phi(-logits, gammas)
    return logits - above + below, 1.0 - above_slope - below_slope


def _log_phi(logits: Tensor, gammas: Tensor) -> tuple[Tensor, Tensor]:
    """log φ(σ(ℓ)) and its slope in ℓ.

    φ(q) = (1 − q)^γ·(1 + γ·q·r) with r = −log q / (1 − q), which goes to 1 as q does.
    """
    q, surprise = logits.sigmoid(), softplus(-logits)
    ratio = torch.where(logits > _SATURATED, 1.0, surprise / logits.neg().clamp(min=-_SATURATED).sigmoid())
    inner = 1.0 + gammas * q * ratio
    slope = (1.0 - gammas) * q - q * (1.0 + gammas * (1.0 - surprise)) / inner
    return gammas * logsigmoid(-logits) + inner.log(), slope
