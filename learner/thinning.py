"""Down-sampling: of an outcome's negatives a share is learned, and the logit in training knows (He et al. 2014).

Of exposures without an outcome the share r is learned, and every positive. The odds of what is learned are the true
ones over r, so the loss is taken on the logit − log r (ALGORITHMS §6), σ of the logit stays the probability, and base
rates count what was left out. Which exposures are kept, their user, item and time decide: the same in every run, for
all tasks, and for an exposure that is learned at once as for one that waits.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from contracts.batch import Batch, Bools, Float32s, Int64s
from contracts.settings import Settings
from learner.store import ExampleStore

_MIX = np.uint64(0x9E3779B97F4A7C15)
_BITS = 53


class Thinning:
    """What is left out of the labels to learn from, and what the logits owe for it."""

    def __init__(self, settings: Settings) -> None:
        self._share = settings.negatives.keep
        self._outcomes: Bools = ~np.array(settings.sampled_tasks)
        self.is_used = self._share < 1
        self.shift: Tensor = torch.tensor(self._outcomes).float() * -math.log(self._share)
        """What training adds to the logits, shape ``[T]``."""

    def thinned(self, batch: Batch, store: ExampleStore) -> tuple[Batch, Int64s]:
        """The batch without the negatives that are left out, and their number by task, shape ``[T]``.

        :param store: has the features of the exposures that matured.
        """
        if not self.is_used:
            return batch, np.zeros(len(self._outcomes), np.int64)
        slot = batch.matured_slot
        learn = self._kept(batch.rows.ids, batch.time_ms, batch.labels, batch.learn)
        matured = self._kept(
            store.column("ids", slot), store.column("time_ms", slot), batch.matured_labels, batch.matured_learn
        )
        n_left_out = (batch.learn & ~learn).sum(0) + (batch.matured_learn & ~matured).sum(0)
        return replace(batch, learn=learn, matured_learn=matured), n_left_out

    def _kept(self, ids: Int64s, time_ms: Int64s, labels: Float32s, learn: Bools) -> Bools:
        """Shape ``[N, T]``."""
        key = ids[:, 0] ^ ids[:, 1] * 3 ^ time_ms * 5
        # Twice: times differ in their lowest bits only, which one product leaves low.
        mixed = key.view(np.uint64) * _MIX
        drawn = ((mixed ^ mixed >> np.uint64(32)) * _MIX) >> np.uint64(64 - _BITS)
        kept = drawn < self._share * (1 << _BITS)
        left: Bools = learn & ((labels > 0) | kept[:, None] | ~self._outcomes)
        return left
