"""Prequential quality of one task: counts and logit histograms over the stream, its second half, a sliding window.

Everything is summed as integers, log-losses and probabilities in fixed point: sums of integers do not depend on
their order, so a stream cut into other batches gives the same numbers to the last digit, and blocks merge exactly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Bools, Float32s, Int64s

Arrays = dict[str, NDArray[Any]]
_Histogram = NDArray[np.int32]

BINS = 2048
MAX_LOGIT = 12.0
"""The histogram covers ±12; what lies beyond counts into its outer bins. A bin is 0.0117 wide."""
MAX_BLOCKS = 64
FIRST_BLOCK = 16
WINDOW_PARTS = 12

_FIXED = float(1 << 24)
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
    log_loss = _ratio(int(block.counts[_LOSS]) / _FIXED, n)
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
        "calibration": _ratio(int(block.counts[_PROBABILITY]) / _FIXED, positives),
        "accuracy": _ratio(n - misses - false_alarms, n),
        "precision": _ratio(hits, yes),
        "recall": _ratio(hits, positives),
        "f1": _ratio(2 * hits, 2 * hits + false_alarms + misses),
    }


class _Measured(NamedTuple):
    """Per example, before summing; shapes ``[N]``. A cell is a place in the flattened histogram of :class:`Block`."""

    positive: Bools
    loss: NDArray[np.float64]
    probability: NDArray[np.float64]
    yes: Bools
    cell: Int64s

    def part(self, chosen: slice | Bools) -> "_Measured":
        return _Measured(
            self.positive[chosen], self.loss[chosen], self.probability[chosen], self.yes[chosen], self.cell[chosen]
        )

    def tally(self) -> tuple[Int64s, _Histogram]:
        # Fixed-point values are whole numbers below 2⁵³ even summed over a batch: their float sums are exact.
        counts = np.array(
            (
                len(self.cell),
                np.count_nonzero(self.positive),
                int(self.loss.sum()),
                int(self.probability.sum()),
                np.count_nonzero(self.yes),
                np.count_nonzero(self.yes & self.positive),
            ),
            dtype=np.int64,
        )
        return counts, np.bincount(self.cell, minlength=2 * BINS).astype(np.int32).reshape(2, BINS)


def _measure(logits: Float32s, labels: Float32s, threshold_logit: float) -> _Measured:
    # Python's operators instead of np.clip and np.where: called per batch and task, their overhead is what counts.
    positive = labels > 0.5
    sign = positive * 2.0 - 1.0
    z = np.minimum(np.maximum(logits.astype(np.float64), -_LOSS_LIMIT), _LOSS_LIMIT)
    if math.isnan(z.sum()):
        # A model that says NaN is as wrong as can be; leaving it out would flatter it.
        z = np.where(np.isnan(z), -_LOSS_LIMIT * sign, z)
    decay = np.exp(-np.abs(z))  # in (0, 1]
    loss = np.rint((np.log1p(decay) - np.minimum(z * sign, 0.0)) * _FIXED)
    less_likely = decay / (1.0 + decay)  # the probability of the less likely class
    probability = np.rint(np.abs((z >= 0.0) - less_likely) * _FIXED)
    cell = ((z + MAX_LOGIT) * (BINS / (2 * MAX_LOGIT))).astype(np.int64)
    cell = np.minimum(np.maximum(cell, 0), BINS - 1) + positive * BINS
    return _Measured(positive, loss, probability, z >= threshold_logit, cell)


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
        self._block_size = FIRST_BLOCK
        self._current = 0
        # int32 is enough: a block holds fewer than 2³¹ examples until the stream has seen 6·10¹⁰.
        self._counts = np.zeros((MAX_BLOCKS, _COUNTS), dtype=np.int64)
        self._histograms = np.zeros((MAX_BLOCKS, 2, BINS), dtype=np.int32)
        self._part = np.full(WINDOW_PARTS, -1, dtype=np.int64)  # which stretch of event time a ring place holds
        self._part_counts = np.zeros((WINDOW_PARTS, _COUNTS), dtype=np.int64)
        self._part_histograms = np.zeros((WINDOW_PARTS, 2, BINS), dtype=np.int32)

    @property
    def n_examples(self) -> int:
        """Examples seen so far."""
        return int(self._counts[:, _N].sum())

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
        measured = _measure(logits, labels, self._threshold_logit)
        counts, histogram = measured.tally()
        self._extend(measured, counts, histogram)
        self._slide(measured, counts, histogram, time_ms)
        return int(counts[_LOSS]) / _FIXED / n

    def _extend(self, measured: _Measured, counts: Int64s, histogram: _Histogram) -> None:
        n, done = len(measured.cell), 0
        while done < n:
            room = self._block_size - int(self._counts[self._current, _N])
            if room == 0:
                self._next_block()
                continue
            taken = min(room, n - done)
            if taken < n:  # a batch across a border is split, so that blocks do not depend on how batches fell
                counts, histogram = measured.part(slice(done, done + taken)).tally()
            self._counts[self._current] += counts
            self._histograms[self._current] += histogram
            done += taken

    def _next_block(self) -> None:
        self._current += 1
        if self._current < MAX_BLOCKS:
            return
        half = MAX_BLOCKS // 2
        for kept in (self._counts, self._histograms):
            kept[:half] = kept[0::2] + kept[1::2]
            kept[half:] = 0
        self._current = half
        self._block_size *= 2

    def _slide(self, measured: _Measured, counts: Int64s, histogram: _Histogram, time_ms: Int64s | int) -> None:
        if not isinstance(time_ms, np.ndarray):
            self._add_part(int(time_ms) // self._part_ms, counts, histogram)
            return
        parts = time_ms // self._part_ms  # [N]
        if parts[0] == parts[-1] and (parts == parts[0]).all():
            self._add_part(int(parts[0]), counts, histogram)
            return
        for part in np.unique(parts).tolist():
            self._add_part(part, *measured.part(parts == part).tally())

    def _add_part(self, part: int, counts: Int64s, histogram: _Histogram) -> None:
        place = part % WINDOW_PARTS
        if part > self._part[place]:
            self._part[place] = part
            self._part_counts[place] = 0
            self._part_histograms[place] = 0
        elif part < self._part[place]:
            return  # older than the window
        self._part_counts[place] += counts
        self._part_histograms[place] += histogram

    def all(self) -> Block:
        """All examples so far."""
        return self._from(0)

    def last_half(self) -> Block:
        """The second half of the examples, and at most one block more."""
        before = np.cumsum(self._counts[:, _N]) - self._counts[:, _N]  # [MAX_BLOCKS]: examples ahead of the block
        return self._from(int(np.searchsorted(before, self.n_examples // 2, side="right")) - 1)

    def _from(self, first: int) -> Block:
        used = slice(first, self._current + 1)
        return Block(self._counts[used].sum(axis=0), self._histograms[used].sum(axis=0, dtype=np.int64))

    def window(self, now_ms: int) -> Block:
        """The examples whose labels became known within the window that ends at ``now_ms``."""
        now = now_ms // self._part_ms
        recent = (self._part >= 0) & (self._part > now - WINDOW_PARTS) & (self._part <= now)
        return Block(self._part_counts[recent].sum(axis=0), self._part_histograms[recent].sum(axis=0, dtype=np.int64))

    def curve(self) -> list[CurvePoint]:
        """The learning curve: one point per block, 32 to 64 of them once the stream is long enough."""
        points, examples = [], 0
        for counts, histogram in zip(self._counts, self._histograms, strict=True):
            if counts[_N]:
                examples += int(counts[_N])
                values = summary(Block(counts, histogram.astype(np.int64)))
                points.append(CurvePoint(examples, values["ne"], values["auc"]))
        return points

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Everything the future depends on: plain msgpack types, and copies of the arrays by name."""
        plain = {"block_size": self._block_size, "current": self._current, "part_ms": self._part_ms}
        return plain, {name: kept.copy() for name, kept in self._arrays().items()}

    def restore(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a :meth:`state`. A window of another length starts empty; all else goes on.

        :raises ValueError: not a state of this class.
        """
        check_arrays(arrays, self._arrays())
        block_size, current, part_ms = (check_int(state, name) for name in ("block_size", "current", "part_ms"))
        if not (block_size >= FIRST_BLOCK and 0 <= current < MAX_BLOCKS):
            raise ValueError(f"Block {current} of {block_size} examples cannot be: expected 0 to {MAX_BLOCKS - 1}.")
        self._block_size, self._current = block_size, current
        for name, kept in self._arrays().items():
            if part_ms == self._part_ms or not name.startswith("part"):
                kept[...] = arrays[name]

    def _arrays(self) -> Arrays:
        return {
            "counts": self._counts,
            "histograms": self._histograms,
            "part": self._part,
            "part_counts": self._part_counts,
            "part_histograms": self._part_histograms,
        }


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
