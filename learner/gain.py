"""What the tasks gain from being learned together, told while `learn` runs (ALGORITHMS §3).

A pair of models beside the one that is served: one of the same settings, and single-task nets of the same width, each
with embeddings of its own. Both begin from scratch with the process and learn the very same batches, those of a share
of the users: whoever learned from more users, or for longer, would win by that. So the pair tells what sharing is worth
to a model of its own age and data, not to the served one, which is ahead of both. It is in no snapshot: a restart
begins a new pair.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from contracts.batch import Batch, Bools, Int64s, Layout, Rows
from contracts.settings import Settings
from learner.trainer import Trainer

_MIX = np.uint64(0x9E3779B97F4A7C15)
_BITS = 53
_OF_ROWS = ("slot", "sampled", "time_ms", "list_id", "labels", "known", "learn")
_OF_MATURED = ("matured_slot", "matured_labels", "matured_known", "matured_learn", "matured_late")


class MultiTaskGain:
    """The pair.

    :param settings: the served model's; ``evaluation.shadow_share`` is the share of users.
    """

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self._share = settings.evaluation.shadow_share
        single = {
            "model": settings.model.model_copy(update={"name": "single_task"}),
            # Its rows are as wide as all tasks together: both tables hold as many ids.
            "embedding": settings.embedding.model_copy(
                update={"max_mib": settings.embedding.max_mib * len(settings.tasks)}
            ),
        }
        self.multi, self.single = Trainer(settings, layout), Trainer(settings.model_copy(update=single), layout)
        self._gathered: list[Batch] = []
        self._followed = np.zeros(0, np.bool_)  # by slot: the exposure there is one of the pair's

    def step(self, batch: Batch) -> None:
        """Gather the share's part of the batch; both score, measure and learn what makes a batch as big as this one.

        In its parts alone, a tenth of the users would cost half of a step.
        """
        part = self._part(batch)
        if not _n_rows(part):
            return
        # A slot that is free again must not stand for two exposures in one batch.
        if any(np.isin(part.slot, one.matured_slot).any() for one in self._gathered):
            self._learn()
        self._gathered.append(part)
        if sum(map(_n_rows, self._gathered)) >= _n_rows(batch):
            self._learn()

    def ne(self, now_ms: int) -> dict[str, float]:
        """By task, over the sliding window: NE of the single-task net minus that of the multi-task model.

        Above 0 the task gains. NaN where the window has one class only, or one of the two skipped a batch in it that
        the other learned.
        """
        multi, single = (trainer.quality.window(now_ms) for trainer in (self.multi, self.single))
        found = {}
        for task, own in multi.items():
            other = single[task]
            is_told = own["ne"] is not None and other["ne"] is not None and own["examples"] == other["examples"]
            found[task] = (other["ne"] or 0.0) - (own["ne"] or 0.0) if is_told else math.nan
        return found

    def _part(self, batch: Batch) -> Batch:
        chosen = sampled(batch.rows.ids[:, 0], self._share)
        self._follow(batch.slot, chosen)
        rows, matured = np.flatnonzero(chosen), np.flatnonzero(self._follows(batch.matured_slot))
        return replace(
            batch,
            rows=batch.rows.at(rows),
            **{name: getattr(batch, name)[rows] for name in _OF_ROWS},
            **{name: getattr(batch, name)[matured] for name in _OF_MATURED},
            truth=None,
            ranking=None,
            new_item_events=np.zeros_like(batch.new_item_events),
        )

    def _learn(self) -> None:
        gathered, self._gathered = self._gathered, []
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in gathered]) for name in (*_OF_ROWS, *_OF_MATURED)
        }
        batch = replace(
            gathered[-1],
            rows=Rows.joined([part.rows for part in gathered]),
            **columns,
            first_event_ms=gathered[0].first_event_ms,
        )
        self.multi.step(batch)
        self.single.step(batch)

    def _follow(self, slot: Int64s, chosen: Bools) -> None:
        kept = slot >= 0
        more = int(slot.max(initial=-1)) + 1 - len(self._followed)
        if more > 0:
            self._followed = np.concatenate([self._followed, np.zeros(max(more, len(self._followed) // 2), np.bool_)])
        self._followed[slot[kept]] = chosen[kept]

    def _follows(self, slot: Int64s) -> Bools:
        """Shape ``[M]``; not the exposures that the pair was not there to see."""
        follows: Bools = slot < len(self._followed)
        follows[follows] = self._followed[slot[follows]]
        return follows


def sampled(user: Int64s, share: float) -> Bools:
    """Which of these users' hashes are in the share, shape ``[N]``: always the same users, and more of a bigger one."""
    drawn = (user.view(np.uint64) * _MIX) >> np.uint64(64 - _BITS)
    chosen: Bools = drawn < share * (1 << _BITS)
    return chosen


def _n_rows(batch: Batch) -> int:
    return len(batch.rows) + len(batch.matured_slot)
