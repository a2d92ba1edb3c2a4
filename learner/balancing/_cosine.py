"""Do tasks pull the shared representation one way? The cosine of each pair's gradients."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from learner.balancing._base import task_gradients


def task_gradient_cosines(losses: Tensor, shared: Tensor) -> NDArray[np.float64]:
    """Cosines at the shared representation; -1: full conflict, 0: nothing to do with each other.

    Costs a backward pass a task: for a look now and then, before the batch's own backward pass.

    :param losses: shape ``[T]``.
    :param shared: what all tasks read, part of the losses' graph.
    :returns: shape ``[T, T]``; NaN where a task has no gradient (no label in the batch, or a tower that is still zero).
    """
    gradients = task_gradients(losses, shared, range(len(losses))).double()
    norms = gradients.norm(dim=1)
    products = (gradients @ gradients.t()).numpy()
    lengths = np.outer(norms, norms)
    return np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1.0), np.nan)
