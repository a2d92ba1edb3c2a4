"""The delay head: which outcomes come after their example was learned as a negative (ALGORITHMS §1 B, ADR 15)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from contracts.batch import Bools
from contracts.settings import Settings
from learner.losses import BaseRates, count_labels

_LEARNING_RATE = 0.05
_INITIAL_ACCUMULATOR = 0.1


def delayed_logits(logits: Tensor, late: Tensor) -> Tensor:
    """The link of a stream that holds an example as it stands after a wait, and a late outcome as one positive more.

    Of an exposure with probability p, of whose outcomes the share s comes late, the stream holds p positives and
    1 − p + p·s negatives: training on log p − log(1 − p + p·s) as the logit makes σ(logits) the true p. Own derivation;
    the odds are those that ES-DFM (Yang et al. 2021, arXiv 2012.03245) weighs examples by. Its ends are known: s = 1 is
    :func:`learner.losses.immediate_logits`, s = 0 the plain logit.

    :param logits: of p, shape ``[N, T]``.
    :param late: s, shape ``[N, T]``, in [0, 1]; no gradient goes there.
    """
    p, not_p = logsigmoid(logits), logsigmoid(-logits)
    return p - torch.logaddexp(not_p, p + late.detach().log())


class Regression:
    """Logistic regression per task on an example's embeddings and dense features, above the base rate.

    Its gradient stays here (Adagrad of its own), so that what makes an outcome late bends no embedding.

    :param n_features: floats of an example: embeddings, then dense.
    """

    def __init__(self, n_tasks: int, n_features: int) -> None:
        self._rates = BaseRates(n_tasks)
        self._weights = torch.zeros(n_features + 1, n_tasks)
        self._accumulator = torch.full((n_features + 1, n_tasks), _INITIAL_ACCUMULATOR)

    @torch.no_grad()
    def predict(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """Probability of each example and task, shape ``[N, T]``.

        :param embedded: shape ``[N, C, d]``; ``dense``: ``[N, D]``.
        """
        return (_features(embedded, dense) @ self._weights + self._rates.logits).sigmoid()

    @torch.no_grad()
    def learn(self, embedded: Tensor, dense: Tensor, predicted: Tensor, label: Bools, known: Bools) -> None:
        """One step.

        :param predicted: what :meth:`predict` said, shape ``[N, T]``.
        :param label: shape ``[N, T]``, ignored where ``known`` is false.
        """
        self._rates.update(*count_labels(label.astype(np.float32), known))
        rows = np.flatnonzero(known.any(1))
        if not len(rows):
            return
        residual = torch.from_numpy(known[rows]) * (predicted[rows] - torch.from_numpy(label[rows]).float())
        gradient = _features(embedded[rows], dense[rows]).t() @ residual
        self._accumulator.addcmul_(gradient, gradient)
        self._weights.addcdiv_(gradient, self._accumulator.sqrt(), value=-_LEARNING_RATE)

    def save(self) -> dict[str, NDArray[Any]]:
        """State as arrays."""
        return {
            **self._rates.save(),
            "weights": self._weights.numpy().copy(),
            "accumulator": self._accumulator.numpy().copy(),
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`save`."""
        self._rates.load(arrays)
        self._weights = torch.from_numpy(arrays["weights"].copy())
        self._accumulator = torch.from_numpy(arrays["accumulator"].copy())


class DelayHead:
    """s(x): the share of late positives, learned from positives alone: is this one late?

    :param n_features: floats of an example: embeddings, then dense.
    """

    def __init__(self, settings: Settings, n_features: int) -> None:
        self.tasks = torch.tensor(settings.delay_head_tasks)
        self._regression = Regression(len(settings.tasks), n_features)

    @property
    def is_used(self) -> bool:
        """Whether any task has it."""
        return bool(self.tasks.any())

    def late(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """s of each example and task, shape ``[N, T]``; of no meaning for a task without a delay head.

        :param embedded: shape ``[N, C, d]``; ``dense``: ``[N, D]``.
        """
        return self._regression.predict(embedded, dense)

    def learn(self, embedded: Tensor, dense: Tensor, late: Tensor, positive: Bools, came_late: Bools) -> None:
        """One step.

        :param late: what :meth:`late` said, shape ``[N, T]``.
        :param positive: shape ``[N, T]``, the positives of this batch; ``came_late``: those of them that are late.
        """
        self._regression.learn(embedded, dense, late, came_late, positive & self.tasks.numpy())

    def save(self) -> dict[str, NDArray[Any]]:
        """State as arrays."""
        return self._regression.save()

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`save`."""
        self._regression.load(arrays)


def _features(embedded: Tensor, dense: Tensor) -> Tensor:
    return torch.cat([embedded.flatten(1), dense, dense.new_ones(len(dense), 1)], 1)
