"""Quality of an order: one item among sampled others, and the items of one request among each other."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Float32s, Int64s
from learner.prequential import Arrays, check_arrays, check_int

TOP = 10
MAX_PENDING_ITEMS = 1 << 18

_FIXED = 1 << 32
_MASK = (1 << 64) - 1
_DISCOUNTS = [1.0 / math.log2(place + 2) for place in range(TOP)]


class RankingQuality:
    """Where the event's own item lands among C candidates: a count per rank, from which all metrics follow.

    :param n_candidates: C, the event's own item among them.
    """

    def __init__(self, n_candidates: int) -> None:
        if n_candidates < 2:
            raise ValueError(f"A ranking needs at least two candidates; found {n_candidates}.")
        self._n_candidates = n_candidates
        self._ranks = np.zeros(n_candidates, dtype=np.int64)

    def update(self, scores: Float32s, tie_breaks: Float32s) -> None:
        """Rank the first of each group.

        :param scores: shape ``[G, C]``, the event's own item first; NaN ranks last.
        :param tie_breaks: shape ``[G, C]``; among equal scores the larger one is ahead.
        :raises ValueError: C is not what the class was made for, or the shapes differ.
        """
        if scores.ndim != 2 or scores.shape[1] != self._n_candidates or scores.shape != tie_breaks.shape:
            raise ValueError(
                f"Scores and tie-breaks must both be [G, {self._n_candidates}]; "
                f"found {list(scores.shape)} and {list(tie_breaks.shape)}."
            )
        scores = np.where(np.isnan(scores), -np.inf, scores)
        own, others = scores[:, :1], scores[:, 1:]  # [G, 1], [G, C-1]
        ahead = (others > own) | ((others == own) & (tie_breaks[:, 1:] > tie_breaks[:, :1]))
        self._ranks += np.bincount(ahead.sum(axis=1), minlength=self._n_candidates)

    def summary(self) -> dict[str, int | float | None]:
        """``hr@10``, ``ndcg@10``, ``mrr``, ``sampled_auc`` over ``events`` rankings; None where there was none."""
        n = int(self._ranks.sum())
        places = np.arange(self._n_candidates)
        gains = {
            "hr@10": places < TOP,
            "ndcg@10": np.where(places < TOP, 1.0 / np.log2(places + 2), 0.0),
            "mrr": 1.0 / (places + 1),
            "sampled_auc": 1.0 - places / (self._n_candidates - 1),
        }
        return {"events": n, **{name: float(self._ranks @ gain) / n if n else None for name, gain in gains.items()}}

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Everything the future depends on."""
        return {}, {"ranks": self._ranks.copy()}

    def restore(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:  # noqa: ARG002 - one shape for all
        """Go on from a :meth:`state`.

        :raises ValueError: not a state of this class.
        """
        check_arrays(arrays, {"ranks": self._ranks})
        self._ranks[...] = arrays["ranks"]


class _Open:
    __slots__ = ("labels", "logits", "newest_ms")

    def __init__(self) -> None:
        self.newest_ms = -1
        self.logits: list[float] = []
        self.labels: list[bool] = []


class ListQuality:
    """Order within each request that shows several items and has an outcome: MRR and NDCG@10.

    The items of one request mature one after another. A request stays pending until the watermark is ``slack_ms``
    past its newest exposure, when every label must be known; then it counts, if it has two items or more and an
    outcome. At most ``max_pending_items`` wait; beyond, the request that waited longest is left out and counted in
    ``n_left_out`` (judged half-known it would flatter: positives are known first).

    :param slack_ms: the task's attribution window.
    """

    def __init__(self, slack_ms: int, max_pending_items: int = MAX_PENDING_ITEMS) -> None:
        self._slack_ms = slack_ms
        self._max_pending_items = max_pending_items
        self._open: dict[int, _Open] = {}  # in order of the last update
        self._n_pending = 0
        self._n_requests = 0
        self._reciprocal_ranks = 0  # fixed point, 2⁻³²: the order of closing does not matter
        self._ndcgs = 0
        self.n_left_out = 0

    def update(self, list_ids: Int64s, logits: Float32s, labels: Float32s, exposure_ms: Int64s) -> None:
        """Take N matured examples; all shapes ``[N]``. Those with list id 0 belong to no request."""
        named = np.flatnonzero(list_ids)
        if len(named) == 0:
            return
        order = named[np.argsort(list_ids[named], kind="stable")]  # [N], requests side by side
        ids = list_ids[order]
        starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
        newest = np.maximum.reduceat(exposure_ms[order], starts).tolist()
        scores = np.where(np.isnan(logits), -np.inf, logits)[order].tolist()
        positives = (labels[order] > 0.5).tolist()
        ends = [*starts[1:].tolist(), len(order)]
        for list_id, start, end, newest_ms in zip(ids[starts].tolist(), starts.tolist(), ends, newest, strict=True):
            waiting = self._open.pop(list_id, None) or _Open()
            waiting.newest_ms = max(waiting.newest_ms, newest_ms)
            waiting.logits += scores[start:end]
            waiting.labels += positives[start:end]
            self._open[list_id] = waiting
        self._n_pending += len(order)
        while self._n_pending > self._max_pending_items:
            self._n_pending -= len(self._open.pop(next(iter(self._open))).logits)
            self.n_left_out += 1

    def close_before(self, watermark_ms: int) -> None:
        """Count the requests whose newest exposure lies more than the slack before the watermark."""
        while self._open:
            list_id = next(iter(self._open))
            waiting = self._open[list_id]
            if waiting.newest_ms + self._slack_ms >= watermark_ms:
                return
            del self._open[list_id]
            self._close(list_id, waiting)

    def close_all(self) -> None:
        """Count all that is pending: the stream has ended."""
        for list_id, waiting in self._open.items():
            self._close(list_id, waiting)
        self._open.clear()

    def _close(self, list_id: int, waiting: _Open) -> None:
        self._n_pending -= len(waiting.logits)
        n_positives = sum(waiting.labels)
        if len(waiting.logits) < 2 or not n_positives:
            return
        places, logits = range(len(waiting.logits)), waiting.logits
        if len(set(logits)) == len(logits):
            order = sorted(places, key=logits.__getitem__, reverse=True)
        else:
            order = sorted(places, key=lambda place: (-logits[place], _tie_break(list_id, place)))
        ranked = [waiting.labels[place] for place in order]
        gain = sum(discount for discount, label in zip(_DISCOUNTS, ranked, strict=False) if label)
        self._n_requests += 1
        self._reciprocal_ranks += round(_FIXED / (ranked.index(True) + 1))
        self._ndcgs += round(_FIXED * gain / sum(_DISCOUNTS[:n_positives]))

    def summary(self) -> dict[str, int | float | None]:
        """``mrr`` and ``ndcg@10`` over ``requests`` lists; None where there was none."""
        n = self._n_requests
        return {
            "requests": n,
            "mrr": self._reciprocal_ranks / _FIXED / n if n else None,
            "ndcg@10": self._ndcgs / _FIXED / n if n else None,
        }

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Everything the future depends on, pending requests included."""
        waiting = self._open.values()
        plain = {
            "n_requests": self._n_requests,
            "reciprocal_ranks": self._reciprocal_ranks,
            "ndcgs": self._ndcgs,
            "n_left_out": self.n_left_out,
        }
        return plain, {
            "list_id": np.array(list(self._open), dtype=np.int64),
            "newest_ms": np.array([one.newest_ms for one in waiting], dtype=np.int64),
            "size": np.array([len(one.logits) for one in waiting], dtype=np.int64),
            "logits": np.array([logit for one in waiting for logit in one.logits], dtype=np.float32),
            "labels": np.array([label for one in waiting for label in one.labels], dtype=np.bool_),
        }

    def restore(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a :meth:`state`.

        :raises ValueError: not a state of this class.
        """
        n_lists, n_items = len(arrays.get("list_id", ())), len(arrays.get("logits", ()))
        lists, items = np.empty(n_lists, dtype=np.int64), np.empty(n_items, dtype=np.float32)
        wanted: Arrays = {"list_id": lists, "newest_ms": lists, "size": lists, "logits": items, "labels": items > 0}
        check_arrays(arrays, wanted)
        if (arrays["size"] < 0).any() or int(arrays["size"].sum()) != n_items:
            raise ValueError(f"The saved requests hold {int(arrays['size'].sum())} items, but {n_items} logits.")
        numbers = [check_int(state, name) for name in ("n_requests", "reciprocal_ranks", "ndcgs", "n_left_out")]
        self._n_requests, self._reciprocal_ranks, self._ndcgs, self.n_left_out = numbers
        self._open, self._n_pending = {}, n_items
        logits, labels = arrays["logits"].tolist(), arrays["labels"].tolist()
        end = 0
        heads = [arrays[name].tolist() for name in ("list_id", "newest_ms", "size")]
        for list_id, newest_ms, size in zip(*heads, strict=True):
            one = self._open[list_id] = _Open()
            start, end = end, end + size
            one.newest_ms, one.logits, one.labels = newest_ms, logits[start:end], labels[start:end]


def _tie_break(list_id: int, place: int) -> int:
    """A number that orders equal scores at random but the same on every run (splitmix64's mix)."""
    mixed = (list_id + (place + 1) * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
