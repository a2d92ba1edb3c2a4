"""Adam over one vector, by torch's own fused kernel."""

from typing import Any

import torch
from torch.optim.adam import adam


class Adam:
    """Kingma and Ba 2015, as :class:`torch.optim.Adam` with ``fused=True``, bit for bit.

    Not that class: its constructor imports torch's compiler, a second of every start and memory that is never used.

    :param weights: shape ``[P]``, changed in place.
    """

    def __init__(self, weights: torch.Tensor, learning_rate: float) -> None:
        self.moments: dict[str, torch.Tensor] = {}
        """``step`` (a scalar), ``exp_avg`` and ``exp_avg_sq`` (shape ``[P]``); empty before the first step."""
        self._weights = weights
        self._constants: dict[str, Any] = {
            "lr": learning_rate,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "amsgrad": False,
            "maximize": False,
        }

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, scale: float = 1.0) -> None:
        """One step against a gradient of shape ``[P]``, its learning rate times ``scale``."""
        if not self.moments:
            averages = {name: torch.zeros_like(gradient) for name in ("exp_avg", "exp_avg_sq")}
            self.moments = {"step": torch.zeros(()), **averages}
        step, average, average_of_squares = (self.moments[name] for name in ("step", "exp_avg", "exp_avg_sq"))
        constants = {**self._constants, "lr": self._constants["lr"] * scale}
        adam([self._weights], [gradient], [average], [average_of_squares], [], [step], fused=True, **constants)
