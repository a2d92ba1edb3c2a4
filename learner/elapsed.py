"""ES-DFM: examples of a stream with a wait weighed by what closed windows tell (Yang et al. 2021, arXiv 2012.03245).

The stream is the delay head's: an exposure after the wait, labelled as it stands then, and an outcome behind that as
one positive more. With f_dp(x) the probability of an outcome behind the wait, and f_rn(x) that of none behind an
exposure without one at the wait, a positive weighs 1 + f_dp and a negative (1 + f_dp)·f_rn: the stream's p positives
and 1 − p + f_dp negatives then weigh like p and 1 − p. The paper trains both heads beforehand, on data a window old;
here they learn as windows close, and the weights lag by a window.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from contracts.batch import Bools
from contracts.settings import Settings
from learner.delay import Regression

_HEADS = ("late", "fake")


class ElapsedSampling:
    """The two heads: is there an outcome behind the wait; and is there, where none was before it (1 − f_rn)?

    :param n_features: floats of an example: embeddings, then dense.
    """

    def __init__(self, settings: Settings, n_features: int) -> None:
        self.tasks: Bools = np.array(settings.es_dfm_tasks)
        self._heads = {name: Regression(len(settings.tasks), n_features) for name in _HEADS}

    @property
    def is_used(self) -> bool:
        """Whether any task is learned so."""
        return bool(self.tasks.any())

    def predict(self, embedded: Tensor, dense: Tensor) -> dict[str, Tensor]:
        """What each head says of each example and task, shape ``[N, T]``."""
        return {name: head.predict(embedded, dense) for name, head in self._heads.items()}

    def learn(
        self,
        embedded: Tensor,
        dense: Tensor,
        said: Mapping[str, Tensor],
        positive: Bools,
        came_late: Bools,
        final: Bools,
    ) -> None:
        """One step, on the examples whose window closed; all masks have shape ``[N, T]``.

        :param said: what :meth:`predict` said.
        :param positive: final labels; ``came_late``: those of them that came behind the wait.
        """
        final = final & self.tasks
        self._heads["late"].learn(embedded, dense, said["late"], came_late, final)
        self._heads["fake"].learn(embedded, dense, said["fake"], came_late, final & (came_late | ~positive))

    def save(self) -> dict[str, NDArray[Any]]:
        """State as arrays; none where no task is learned so."""
        heads = self._heads.items() if self.is_used else ()
        return {f"{name}.{key}": array for name, head in heads for key, array in head.save().items()}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`save`; others' arrays are passed over."""
        for name, head in self._heads.items() if self.is_used else ():
            head.load({key: arrays[f"{name}.{key}"] for key in head.save()})


def weights(said: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """What each example weighs, shape ``[N, T]``."""
    behind = 1 + said["late"]
    return torch.where(labels > 0, behind, behind * (1 - said["fake"]))


def late_share(said: Mapping[str, Tensor], logits: Tensor) -> Tensor:
    """Of the outcomes of an example with these logits, the share behind the wait, shape ``[N, T]``."""
    return (said["late"] / logits.detach().sigmoid()).clamp(max=1.0)


def weighted_bce(logits: Tensor, labels: Tensor, known: Tensor, weight: Tensor) -> Tensor:
    """Mean over the known rows of the weighted cross-entropy: four of shape ``[N, T]`` to ``[T]``."""
    losses = binary_cross_entropy_with_logits(logits, labels, weight, reduction="none")
    return torch.where(known, losses, 0.0).sum(0) / known.sum(0).clamp(min=1)
