"""The regulariser λR(w): a pull of the weights towards zero, and experts left out by chance."""

import torch
from torch import Tensor

from contracts.settings import TrainSettings
from learner.models._base import Network
from learner.viewers import Viewers


class Pull:
    """The gradient of l1·Σ|w| + l2·Σw²/2 over the dense weights; biases are left alone, gates have an l1 of their own.

    The embedding rows have the same pull, those that a step touches (:meth:`learner.embedding.EmbeddingTable.update`).
    """

    def __init__(self, network: Network, settings: TrainSettings) -> None:
        self.l1, self.l2 = settings.l1, settings.l2
        of_parts = {"bias": (0.0, 0.0), "gates": (settings.gate_l1, 0.0)}
        rates = [
            (weights.numel(), *of_parts.get(name.rsplit(".", 1)[-1], (self.l1, self.l2)))
            for name, weights in network.named_parameters()
        ]
        self._l1s = torch.cat([torch.full((size,), l1) for size, l1, _ in rates])
        self._l2s = torch.cat([torch.full((size,), l2) for size, _, l2 in rates])
        self._uses_l1, self._uses_l2 = bool(self._l1s.any()), bool(self._l2s.any())

    def add(self, gradient: Tensor, weights: Tensor) -> None:
        """Add it to the gradient of all weights in the network's order, in place; shapes ``[P]``."""
        if self._uses_l1:
            gradient.addcmul_(self._l1s, weights.sign())
        if self._uses_l2:
            gradient.addcmul_(self._l2s, weights)


def with_dropout(
    network: Network, embedded: Tensor, wide: Tensor, dense: Tensor, seed: int, viewers: Viewers | None = None
) -> Tensor:
    """The network's residuals in training mode; the same seed leaves out the same experts."""
    network.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        residual: Tensor = network(embedded, wide, dense, viewers)
    network.eval()
    return residual
