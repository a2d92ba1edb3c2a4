"""What a balancing method is given and gives. A module here defines ``Balancing(weights)`` with this protocol."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Balancer(Protocol):
    """From a loss per task to the one that is minimised."""

    def __call__(
        self, losses: Tensor, counts: Tensor, rates: NDArray[np.float64], shared: Tensor | None = None
    ) -> Tensor:
        """The total, whose gradient is each task's times what the method thinks the task should weigh now.

        :param losses: shape ``[T]``, mean over the rows whose label is known.
        :param counts: shape ``[T]``, how many those are; a task of none changes neither total nor state.
        :param rates: shape ``[T]``, the tasks' base rates.
        :param shared: what all tasks read, the embedded rows, part of the losses' graph; methods that compare
            gradients do so there (:func:`task_gradients`).
        """

    def state(self) -> dict[str, NDArray[Any]]:
        """What the next total depends on, as arrays; empty for a method without memory."""

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a :meth:`state` of the same tasks.

        :raises ValueError: not a state of this method and so many tasks.
        """


def shares(weights: Sequence[float], counts: Tensor) -> Tensor:
    """What ``fixed`` multiplies the losses by, shape ``[T]``: the settings' weights, each by its share of the rows."""
    return torch.tensor(list(weights), dtype=torch.float32) * counts / counts.max().clamp(min=1)


def task_gradients(losses: Tensor, shared: Tensor | None, tasks: Sequence[int]) -> Tensor:
    """Each task's gradient at the shared representation, shape ``[len(tasks), shared.numel()]``.

    A backward pass for each task; the graph stays for the one of the total.

    :raises ValueError: there is no ``shared``.
    """
    if shared is None:
        raise ValueError("Gradients per task need the shared representation; found None, give `shared`.")
    return torch.stack([torch.autograd.grad(losses[task], shared, retain_graph=True)[0].flatten() for task in tasks])


def checked(
    arrays: Mapping[str, NDArray[Any]], own: Mapping[str, NDArray[Any]], method: str
) -> dict[str, NDArray[Any]]:
    """Copies of saved arrays.

    :raises ValueError: they are not named and shaped as ``own``.
    """
    for name, array in own.items():
        saved = arrays.get(name)
        if saved is None or saved.shape != array.shape or saved.dtype != array.dtype:
            found = "nothing" if saved is None else f"{saved.dtype}{list(saved.shape)}"
            raise ValueError(
                f"The saved state of the balancing `{method}` holds `{name}` as {array.dtype}{list(array.shape)}; "
                f"found {found}. Resume with the settings that the snapshot was made with."
            )
    return {name: arrays[name].copy() for name in own}
