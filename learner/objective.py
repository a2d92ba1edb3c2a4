"""What each task minimises: its cross-entropy, bent for imbalance, delay and funnel as the settings say."""

import numpy as np
import torch
from torch import Tensor

from contracts.batch import Bools
from contracts.settings import Settings
from learner.delay import delayed_logits
from learner.elapsed import weighted_bce
from learner.funnel import ROOT, inverse_propensity_loss, joint_logits
from learner.imbalance import masked_focal
from learner.losses import immediate_logits, masked_bce
from learner.thinning import Thinning


class Objective:
    """The loss of each task, before they are balanced."""

    def __init__(self, settings: Settings) -> None:
        self._parents = settings.parents
        self._immediate = torch.tensor(settings.immediate_tasks)
        self._delayed = torch.tensor(settings.delay_head_tasks)
        thinning = Thinning(settings)
        self._shift = thinning.shift if thinning.is_used else None
        self._weighed = torch.tensor(settings.es_dfm_tasks)
        self._positive_weights = torch.tensor([task.positive_weight for task in settings.tasks])
        self._gammas = torch.tensor([task.focal_gamma for task in settings.tasks])
        self._plain = bool((self._positive_weights == 1).all() and (self._gammas == 0).all())
        stages = np.array([parent != ROOT for parent in self._parents])
        self._propensity_weight = settings.train.inverse_propensity if stages.any() else 0.0
        self.settling: Bools = (stages & (self._propensity_weight > 0)) | self._weighed.numpy()
        """Shape ``[T]``: tasks whose final labels are asked for, also where they were learned earlier."""

    def __call__(
        self,
        conditional: Tensor,
        labels: Tensor,
        learn: Tensor,
        final: Tensor,
        late: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Mean loss per task, shape ``[T]``.

        :param conditional: logits, given the parent, shape ``[N, T]``.
        :param labels: shape ``[N, T]``.
        :param learn: shape ``[N, T]``, the labels to learn from.
        :param final: shape ``[N, T]``, the labels whose window closed with this row.
        :param late: shape ``[N, T]``, what the delay head says; None: no task has one.
        :param weight: shape ``[N, T]``, what the examples weigh; None: no task has ``es_dfm``.
        """
        joint = joint_logits(conditional, self._parents)
        scored = immediate_logits(joint, self._immediate)
        if late is not None:
            scored = torch.where(self._delayed, delayed_logits(joint, late), scored)
        if self._shift is not None:
            scored = scored + self._shift
        if self._plain:
            losses = masked_bce(scored, labels, learn)
        else:
            losses = masked_focal(scored, labels, learn, self._positive_weights, self._gammas)
        if weight is not None:
            losses = torch.where(self._weighed, weighted_bce(scored, labels, learn, weight), losses)
        if not self._propensity_weight:
            return losses
        # A parent's window may have closed before; its label stands in the row all the same.
        final = final.clone()
        for task, parent in enumerate(self._parents):
            if parent != ROOT:
                final[:, parent] |= final[:, task]
        return losses + self._propensity_weight * inverse_propensity_loss(conditional, labels, final, self._parents)
