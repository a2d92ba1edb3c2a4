"""Funnels: a task's probability is the product of the conditional ones along its stages (ALGORITHMS §2).

Entire-space training as in ESMM (Ma et al. 2018, arXiv 1804.07931) and ESM² (Wen et al. 2020, arXiv 1910.07099): a
stage has no loss of its own on the rows that reached it, where it would learn from a selection.

Order of work for a batch of logits:

1. network's residual + :func:`conditional_base` give the *conditional* logits z: P(stage | its parent);
2. :func:`joint_logits` makes them logits of P(stage), monotone along the path by construction;
3. delay link, loss, base rates, metrics and scoring take those as they take any task's logits.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from contracts.batch import Float32s

ROOT = -1
_MOST_OF_PARENT = 0.99
_LEAST_RATE = 1e-7
_LEAST_PROPENSITY = 0.05


def log_probabilities(logits: Tensor, parents: Sequence[int]) -> tuple[Tensor, Tensor]:
    """log P and log(1 − P) of each stage.

    With parent q and conditional σ(z): log P = log q + log σ(z), and 1 − P = (1 − q) + q·σ(−z) is a sum of positive
    terms, so nothing cancels where P is near 1 (log1mexp of log P loses what a float32 cannot tell from 1).

    :param logits: shape ``[N, T]``, conditional.
    :param parents: for each task its parent's index, or ``ROOT``; no cycle.
    :returns: two of shape ``[N, T]``.
    """
    yes, no = list(logsigmoid(logits).unbind(1)), list(logsigmoid(-logits).unbind(1))
    for task in _parents_first(parents):
        parent = parents[task]
        if parent != ROOT:
            no[task] = torch.logaddexp(no[parent], yes[parent] + no[task])
            yes[task] = yes[parent] + yes[task]
    return torch.stack(yes, 1), torch.stack(no, 1)


def joint_logits(logits: Tensor, parents: Sequence[int]) -> Tensor:
    """Logits of P(stage) over the entire space: log P − log(1 − P).

    A loss over all rows is then any task's: BCE of these logits is −y·log P − (1 − y)·log(1 − P).

    :param logits: shape ``[N, T]``, conditional.
    :param parents: see :func:`log_probabilities`.
    :returns: shape ``[N, T]``; a root's are unchanged.
    """
    if all(parent == ROOT for parent in parents):
        return logits
    yes, no = log_probabilities(logits, parents)
    return yes - no


def conditional_base(rates: NDArray[np.float64], parents: Sequence[int]) -> Float32s:
    """The logit each stage starts from, so that P(stage) starts at its base rate: that of rate / parent's rate.

    A stage that outnumbers its parent (an outcome whose cause was lost) starts at 99 % of it.

    :param rates: shape ``[T]``, base rates over the entire space.
    :returns: shape ``[T]``.
    """
    above = np.array([1.0 if parent == ROOT else rates[parent] for parent in parents])
    most = np.where(np.array(parents) == ROOT, 1.0 - _LEAST_RATE, _MOST_OF_PARENT)
    conditional = np.clip(rates / above, _LEAST_RATE, most)
    base: Float32s = np.log(conditional / (1.0 - conditional)).astype(np.float32)
    return base


def capped(logits: Float32s, parents: Sequence[int]) -> Float32s:
    """No stage above its parent: what calibrating each stage by itself may break.

    :param logits: shape ``[N, T]``, of P(stage).
    :returns: shape ``[N, T]``; ``logits`` itself where no task has a parent.
    """
    if all(parent == ROOT for parent in parents):
        return logits
    below = logits.copy()
    for task in _parents_first(parents):
        if parents[task] != ROOT:
            below[:, task] = np.minimum(below[:, task], below[:, parents[task]])
    return below


def inverse_propensity_loss(logits: Tensor, labels: Tensor, known: Tensor, parents: Sequence[int]) -> Tensor:
    """What ESCM²-IPS adds to the loss of a stage, before its weight λ (Wang et al. 2022, arXiv 2204.05125).

    The conditional's cross-entropy on the rows whose parent is positive, each over its propensity P(parent), which gets
    no gradient and is clipped at 0.05 from below; divided by all rows, as the risk over the entire space is.

    :param logits: shape ``[N, T]``, conditional.
    :param labels: shape ``[N, T]``, in {0, 1}; ignored where ``known`` is false.
    :param known: shape ``[N, T]``, bool; a row counts for a stage where the label of its parent is known too.
    :returns: shape ``[T]``; zero for a root and for a stage with no such row.
    """
    labels = labels.masked_fill(~known, 0.0)
    log_p, _ = log_probabilities(logits.detach(), parents)
    losses = []
    for task, parent in enumerate(parents):
        if parent == ROOT:
            losses.append(logits.new_zeros(()))
            continue
        rows = known[:, task] & known[:, parent]
        each = binary_cross_entropy_with_logits(logits[:, task], labels[:, task], reduction="none")
        weights = labels[:, parent] * rows / log_p[:, parent].exp().clamp(min=_LEAST_PROPENSITY)
        losses.append((each * weights).sum() / rows.sum().clamp(min=1))
    return torch.stack(losses)


def _parents_first(parents: Sequence[int]) -> Iterator[int]:
    done: set[int] = {ROOT}
    while len(done) <= len(parents):
        ready = [task for task, parent in enumerate(parents) if task not in done and parent in done]
        if not ready:
            left = [task for task in range(len(parents)) if task not in done]
            raise ValueError(f"A funnel must end at tasks without a parent; found a cycle among the tasks {left}.")
        done.update(ready)
        yield from ready
