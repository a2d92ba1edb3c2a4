"""UPGrad: each task's gradient projected to where no task's loss rises, then the sum (arXiv 2406.16232)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.balancing._torchjd import GramianBalancing, require

_REGULARISATION = 1e-9


class Balancing(GramianBalancing):
    """TorchJD's UPGrad on the shared representation."""

    def __init__(self, weights: Sequence[float]) -> None:
        require("upgrad")
        super().__init__(weights, _weigh)


def _weigh(gramian: Tensor) -> Tensor:
    from torchjd.aggregation import UPGradWeighting
    from torchjd.linalg import QuadprogProjector

    # Solved for unit gradients, where the regularisation is as small for a rare task's as for a frequent one's.
    norms = gramian.diagonal().sqrt()
    safe = torch.where(norms > 0, norms, 1.0)
    upgrad = UPGradWeighting(norms, QuadprogProjector(norm_eps=0.0, reg_eps=_REGULARISATION))
    return torch.where(norms > 0, upgrad(gramian / torch.outer(safe, safe)) / safe, 1.0)
