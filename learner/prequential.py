"""Prequential quality of one task: counts and logit histograms over the stream, its second half, a sliding window.

Everything is summed as integers, log-losses and probabilities in fixed point: sums of integers do not depend on
their order, so a stream cut into other batches gives the same numbers to the last digit, and blocks merge exactly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from contracts.batch import Float32s, Int64s
from features.idmap import Integer, Real

Arrays = dict[str, NDArray[Any]]

BINS = 2048
MAX_LOGIT = 12.0
"""The histogram covers ±12; what lies beyond counts into its outer bins. A bin is 0.0117 wide."""
MAX_BLOCKS = 64
FIRST_BLOCK = 16
WINDOW_PARTS = 12

FIXED = float(1 << 24)
"""Log-losses and probabilities are sums of 2⁻²⁴."""
_LOSS_LIMIT = 60.0  # nats; keeps one absurd logit from outweighing a day
_COUNTS = 6
_N, _LOSS, _PROBABILITY = 0, 2, 3  # places in a block's counts


@dataclass(frozen=True, slots=True)
class Block:
    """What is kept of some examples of one task; blocks add up.

    :param counts: shape ``[6]``: examples, positives, Σ log-loss and Σ probability (fixed point, 2⁻²⁴), examples
        called a yes at the threshold, positives among those.
    :param histogram: shape ``[2, BINS]``: logits of negatives and of positives.
    """

    counts: Int64s
    histogram: Int64s

    def __add__(self, other: "Block") -> "Block":
        return Block(self.counts + other.counts, self.histogram + other.histogram)


class CurvePoint(NamedTuple):
    """One stretch of the learning curve; None where the stretch has one class only."""

    examples: int
    """Examples of the stream up to the end of the stretch."""
    ne: float | None
    auc: float | None


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def summary(block: Block) -> dict[str, int | float | None]:
    """The metrics of a block; what is undefined (no positives, one class only) is None, never NaN.

    ``ne`` is the mean log-loss over the entropy of the block's own base rate (He et al. 2014): 1 is a constant that
    knows the rate. ``calibration`` is Σp/Σy. ``auc`` counts pairs within one bin of the histogram as half.
    """
    n, positives, _, _, yes, hits = (int(count) for count in block.counts)
    negatives, misses, false_alarms = n - positives, positives - hits, yes - hits
    log_loss = _ratio(int(block.counts[_LOSS]) / FIXED, n)
    ne = auc = None
    if log_loss is not None and positives and negatives:
        rate = positives / n
        ne = log_loss / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
        below, above = block.histogram[0].astype(np.float64), block.histogram[1].astype(np.float64)
        auc = float(above @ (np.cumsum(below) - below / 2)) / (float(positives) * negatives)
    return {
        "examples": n,
        "positives": positives,
        "auc": auc,
        "log_loss": log_loss,
        "ne": ne,
        "calibration": _ratio(int(block.counts[_PROBABILITY]) / FIXED, positives),
        "accuracy": _ratio(n - misses - false_alarms, n),
        "precision": _ratio(hits, yes),
        "recall": _ratio(hits, positives),
        "f1": _ratio(2 * hits, 2 * hits + false_alarms + misses),
    }


class _Kept(NamedTuple):
    """What :class:`TaskQuality` remembers.

    int32 is enough for a histogram: a block holds fewer than 2³¹ examples until the stream has seen 6·10¹⁰.
    """

    place: Int64s
    """Shape ``[2]``: the block that is being filled, and how many examples each may hold."""
    counts: Int64s
    """Shape ``[MAX_BLOCKS, 6]``."""
    histograms: NDArray[np.int32]
    """Shape ``[MAX_BLOCKS, 2, BINS]``."""
    part: Int64s
    """Shape ``[WINDOW_PARTS]``: which stretch of event time a place of the ring holds."""
    part_counts: Int64s
    part_histograms: NDArray[np.int32]


class TaskQuality:
    """Quality of one task over its matured examples, in memory that does not grow (some 1.3 MB).

    The stream is kept as at most 64 blocks of equally many examples; when all are full, neighbours merge and the size
    doubles. So the second half and the learning curve are known to within one block, 1/64 to 1/32 of the stream
    (:meth:`last_half` never holds less than the half). The window is a ring of twelve parts of event time: it covers
    between 11/12 of ``window_ms`` and all of it.

    :param threshold: probability from which accuracy, precision, recall and F1 call it a yes.
    """

    def __init__(self, threshold: float, window_ms: int) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"A threshold lies between 0 and 1; found {threshold}.")
        if window_ms < 1:
            raise ValueError(f"A window lasts at least 1 ms; found {window_ms}.")
        self._threshold_logit = math.log(threshold / (1 - threshold))
        self._part_ms = max(1, -(-window_ms // WINDOW_PARTS))
        self._kept = _Kept(
            place=np.array([0, FIRST_BLOCK], dtype=np.int64),
            counts=np.zeros((MAX_BLOCKS, _COUNTS), dtype=np.int64),
            histograms=np.zeros((MAX_BLOCKS, 2, BINS), dtype=np.int32),
            part=np.full(WINDOW_PARTS, -1, dtype=np.int64),
            part_counts=np.zeros((WINDOW_PARTS, _COUNTS), dtype=np.int64),
            part_histograms=np.zeros((WINDOW_PARTS, 2, BINS), dtype=np.int32),
        )

    @property
    def n_examples(self) -> int:
        """Examples seen so far."""
        return int(self._kept.counts[:, _N].sum())

    def update(self, logits: Float32s, labels: Float32s, time_ms: Int64s | int) -> float | None:
        """Take N matured examples.

        :param logits: shape ``[N]``, of the model at the exposure; NaN counts as utterly wrong.
        :param labels: shape ``[N]``, in {0, 1}.
        :param time_ms: shape ``[N]`` or one for all: event time at which the label *became known*. By the exposure's
            time a task that waits a day for its negatives would show a window of nothing but positives.
        :returns: the mean log-loss of these examples, what a drift detector watches; None where N is 0.
        """
        n = len(logits)
        if n == 0:
            return None
        times_ms = np.atleast_1d(np.asarray(time_ms, np.int64))
        return _take(logits, labels, times_ms, self._threshold_logit, self._part_ms, self._kept) / FIXED / n

    def all(self) -> Block:
        """All examples so far."""
        return self._from(0)

    def last_half(self) -> Block:
        """The second half of the examples, and at most one block more."""
        return self._from(self._middle())

    def blocks(self, *, last_half: bool = False) -> list[Block]:
        """The stream in order, in blocks of equally many examples; the last one may hold fewer."""
        first = self._middle() if last_half else 0
        used = range(first, int(self._kept.place[0]) + 1 if self.n_examples else 0)
        return [Block(self._kept.counts[n].copy(), self._kept.histograms[n].astype(np.int64)) for n in used]

    def _middle(self) -> int:
        """The block with which the second half begins."""
        before = (
            np.cumsum(self._kept.counts[:, _N]) - self._kept.counts[:, _N]
        )  # [MAX_BLOCKS]: examples ahead of the block
        return int(np.searchsorted(before, self.n_examples // 2, side="right")) - 1

    def _from(self, first: int) -> Block:
        used = slice(first, self._kept.place[0] + 1)
        return Block(self._kept.counts[used].sum(axis=0), self._kept.histograms[used].sum(axis=0, dtype=np.int64))

    def window(self, now_ms: int) -> Block:
        """The examples whose labels became known within the window that ends at ``now_ms``."""
        now = now_ms // self._part_ms
        recent = (self._kept.part >= 0) & (self._kept.part > now - WINDOW_PARTS) & (self._kept.part <= now)
        return Block(
            self._kept.part_counts[recent].sum(axis=0), self._kept.part_histograms[recent].sum(axis=0, dtype=np.int64)
        )

    def curve(self) -> list[CurvePoint]:
        """The learning curve: one point per block, 32 to 64 of them once the stream is long enough."""
        points, examples = [], 0
        for counts, histogram in zip(self._kept.counts, self._kept.histograms, strict=True):
            if counts[_N]:
                examples += int(counts[_N])
                values = summary(Block(counts, histogram.astype(np.int64)))
                points.append(CurvePoint(examples, values["ne"], values["auc"]))
        return points

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Everything the future depends on: plain msgpack types, and copies of the arrays by name."""
        current, block_size = self._kept.place.tolist()
        plain = {"block_size": block_size, "current": current, "part_ms": self._part_ms}
        return plain, {name: kept.copy() for name, kept in self._arrays().items()}

    def restore(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a :meth:`state`. A window of another length starts empty; all else goes on.

        :raises ValueError: not a state of this class.
        """
        check_arrays(arrays, self._arrays())
        block_size, current, part_ms = (check_int(state, name) for name in ("block_size", "current", "part_ms"))
        if not (block_size >= FIRST_BLOCK and 0 <= current < MAX_BLOCKS):
            raise ValueError(f"Block {current} of {block_size} examples cannot be: expected 0 to {MAX_BLOCKS - 1}.")
        self._kept.place[:] = current, block_size
        for name, kept in self._arrays().items():
            if part_ms == self._part_ms or not name.startswith("part"):
                kept[...] = arrays[name]

    def _arrays(self) -> Arrays:
        return {name: kept for name, kept in self._kept._asdict().items() if name != "place"}


@njit(cache=True, nogil=True)
def _take(
    logits: Float32s, labels: Float32s, times_ms: Int64s, threshold_logit: Real, part_ms: Integer, kept: _Kept
) -> Integer:
    """Count examples into their block and their part of the window, one by one, so that batches leave no trace.

    :returns: Σ log-loss, fixed point.
    """
    total = np.int64(0)
    for n in range(len(logits)):
        positive = labels[n] > 0.5
        z = min(max(np.float64(logits[n]), -_LOSS_LIMIT), _LOSS_LIMIT)
        if np.isnan(logits[n]):
            # A model that says NaN is as wrong as can be; leaving it out would flatter it.
            z = -_LOSS_LIMIT if positive else _LOSS_LIMIT
        decay = math.exp(-abs(z))  # in (0, 1]
        less_likely = decay / (1.0 + decay)  # the probability of the less likely class
        loss = np.int64(np.rint((math.log1p(decay) - min(z if positive else -z, 0.0)) * FIXED))
        probability = np.int64(np.rint((1.0 - less_likely if z >= 0.0 else less_likely) * FIXED))
        cell = np.int64(min(max((z + MAX_LOGIT) * (BINS / (2 * MAX_LOGIT)), 0.0), BINS - 1.0))
        yes = bool(z >= threshold_logit)
        total += loss
        if kept.counts[kept.place[0], _N] == kept.place[1]:
            _next_block(kept)
        block = kept.place[0]
        _add(kept.counts[block], positive, loss, probability, yes)
        kept.histograms[block, np.int64(positive), cell] += 1
        part = times_ms[min(n, len(times_ms) - 1)] // part_ms
        place = part % WINDOW_PARTS
        if part > kept.part[place]:
            kept.part[place] = part
            kept.part_counts[place] = 0
            kept.part_histograms[place] = 0
        if part == kept.part[place]:  # else it is older than the window
            _add(kept.part_counts[place], positive, loss, probability, yes)
            kept.part_histograms[place, np.int64(positive), cell] += 1
    return total


@njit(cache=True)
def _add(counts: Int64s, positive: bool, loss: Integer, probability: Integer, yes: bool) -> None:
    counts[_N] += 1
    counts[1] += positive
    counts[_LOSS] += loss
    counts[_PROBABILITY] += probability
    counts[4] += yes
    counts[5] += yes and positive


@njit(cache=True)
def _next_block(kept: _Kept) -> None:
    kept.place[0] += 1
    if kept.place[0] < MAX_BLOCKS:
        return
    half = MAX_BLOCKS // 2
    for block in range(half):
        kept.counts[block] = kept.counts[2 * block] + kept.counts[2 * block + 1]
        kept.histograms[block] = kept.histograms[2 * block] + kept.histograms[2 * block + 1]
    kept.counts[half:] = 0
    kept.histograms[half:] = 0
    kept.place[0] = half
    kept.place[1] *= 2


def check_arrays(found: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]]) -> None:
    """Saved arrays must have the names, shapes and types of those they go into.

    :raises ValueError: one is missing or of another shape or type.
    """
    for name, array in wanted.items():
        if name not in found:
            raise ValueError(f"The saved quality lacks the array `{name}`.")
        if found[name].shape != array.shape or found[name].dtype != array.dtype:
            raise ValueError(
                f"The saved array `{name}` must be {array.dtype}{list(array.shape)}; "
                f"found {found[name].dtype}{list(found[name].shape)}."
            )


def check_int(state: Mapping[str, Any], name: str) -> int:
    """A whole number of a saved state.

    :raises ValueError: it is missing or something else.
    """
    value = state.get(name)
    if not isinstance(value, int):
        raise ValueError(f"The saved quality must hold a whole number `{name}`; found {value!r}.")  # noqa: TRY004 - a file is wrong, no caller
    return value
