"""PCGrad: a gradient loses its part against each one it conflicts with (Yu et al., NeurIPS 2020, arXiv 2001.06782)."""

from collections.abc import Sequence

from torch import Tensor

from learner.balancing._torchjd import GramianBalancing, require


class Balancing(GramianBalancing):
    """TorchJD's PCGrad on the shared representation."""

    def __init__(self, weights: Sequence[float]) -> None:
        require("pcgrad")
        super().__init__(weights, _weigh)


def _weigh(gramian: Tensor) -> Tensor:
    from torchjd.aggregation import PCGradWeighting

    return PCGradWeighting()(gramian)
