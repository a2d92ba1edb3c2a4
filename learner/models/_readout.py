"""How residuals become what is served: base rate, funnel, calibration. The learner and the scorer share it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts.batch import Bools, Float32s
from contracts.settings import Settings
from learner.calibration import OnlinePlatt
from learner.funnel import capped, conditional_base, joint_logits
from learner.losses import BaseRates

_FIRST_POSITIVES = 200


class Readout:
    """From the network's residuals to logits.

    1. :meth:`conditional`: residual + base rate, the logit of P(task | its parent);
    2. :meth:`raw`: the logit of P(task), which the loss sees and calibration learns from;
    3. :meth:`served`: calibrated, and no stage of a funnel above its parent.

    Calibration learns from the rows that the network learns from, as the network scores them just before it does: a
    correction fitted to the scores of the exposures would be that of a model as old as the attribution window. It
    begins after 200 positives: earlier, the network is off by what it is about to learn itself, the more so where the
    positives are still to come, and correcting that as well leaves a wrong slope for thousands of labels.

    A task that learned against sampled items is not calibrated: its labels' odds are those of the negatives that we
    drew ourselves, no label tells the odds of what is served (its item against one drawn uniformly), and a slope on the
    residual but not on log q would reorder items.
    """

    def __init__(self, settings: Settings) -> None:
        n_tasks = len(settings.tasks)
        self.parents = settings.parents
        self.base_rates = BaseRates(n_tasks)
        self.platt = OnlinePlatt(n_tasks)
        self._n_positives = np.zeros(n_tasks, np.int64)
        self._immediate = settings.immediate_tasks
        self._delayed = np.array(settings.delay_head_tasks) | np.array(settings.es_dfm_tasks)
        self._sampled = np.array(settings.sampled_tasks, np.bool_)
        self._calibrates = settings.train.calibration
        self.calibrated: list[int] = np.flatnonzero(~self._sampled & self._calibrates).tolist()

    def conditional(self, residual: Tensor) -> Tensor:
        """Shape ``[N, T]`` to the same."""
        return residual + torch.from_numpy(conditional_base(self.base_rates.rates, self.parents))

    def raw(self, conditional: Tensor) -> Tensor:
        """Shape ``[N, T]`` to the same."""
        return joint_logits(conditional, self.parents)

    def served(self, raw: Float32s) -> Float32s:
        """Shape ``[N, T]`` to the same."""
        return capped(self.platt.logits(raw), self.parents) if self.calibrated else raw

    def calibrate(self, raw: Float32s, labels: Float32s, learn: Bools, late: Float32s | None = None) -> None:
        """Learn from a batch's labels, shapes ``[N, T]``; ``late``: share of late positives, where a task waits."""
        for task in self.calibrated:
            rows = learn[:, task]
            self._n_positives[task] += np.count_nonzero(labels[rows, task])
            if self._n_positives[task] < _FIRST_POSITIVES:
                continue
            share: Float32s | float = float(self._immediate[task])
            if late is not None and self._delayed[task]:
                share = late[rows, task]
            self.platt.update(task, raw[rows, task], labels[rows, task], share)

    def comparable(self, residual: Tensor, log_q: Float32s) -> Float32s:
        """Logits that compare items; what scoring serves.

        An outcome's is the served one. A task that learned against sampled items gives the log-odds of its item against
        one drawn uniformly: training removed log q, so it is added here (Yi et al. 2019).

        :param residual: shape ``[N, T]``; ``log_q``: ``[N]``.
        :returns: shape ``[N, T]``.
        """
        outcomes = self.served(self.raw(self.conditional(residual)).numpy())
        logits: Float32s = np.where(self._sampled, residual.numpy() + log_q[:, None], outcomes)
        return logits

    def save(self) -> dict[str, dict[str, NDArray[Any]]]:
        """The groups ``base_rates`` and ``calibration``."""
        calibration = {**self.platt.save(), "n_positives": self._n_positives}
        return {"base_rates": self.base_rates.save(), "calibration": calibration}

    def load(self, groups: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """The inverse of :meth:`save`; with ``train.calibration`` off, what an earlier run calibrated is dropped."""
        self.base_rates.load(groups["base_rates"])
        if self._calibrates:
            self.platt.load(groups["calibration"])
            self._n_positives[...] = groups["calibration"]["n_positives"]
