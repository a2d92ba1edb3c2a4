"""The regulariser λR(w): a pull of the weights towards zero, and experts left out by chance."""

import torch
from torch import Tensor

from contracts.settings import TrainSettings
from learner.models._base import Network


class Pull:
    """The gradient of l1·Σ|w| + l2·Σw²/2 over the dense weights; biases are left alone.

    The embedding rows have the same pull, those that a step touches (:meth:`learner.embedding.EmbeddingTable.update`).
    """

    def __init__(self, network: Network, settings: TrainSettings) -> None:
        self.l1, self.l2 = settings.l1, settings.l2
        self._pulled = torch.cat(
            [
                torch.full((weights.numel(),), float(not name.endswith("bias")))
                for name, weights in network.named_parameters()
            ]
        )

    def add(self, gradient: Tensor, weights: Tensor) -> None:
        """Add it to the gradient of all weights in the network's order, in place; shapes ``[P]``."""
        if self.l1:
            gradient.addcmul_(self._pulled, weights.sign(), value=self.l1)
        if self.l2:
            gradient.addcmul_(self._pulled, weights, value=self.l2)


def with_dropout(network: Network, embedded: Tensor, dense: Tensor, seed: int) -> Tensor:
    """The network's residuals in training mode; the same seed leaves out the same experts."""
    network.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        residual: Tensor = network(embedded, dense)
    network.eval()
    return residual
