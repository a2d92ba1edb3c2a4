"""Several learners on one stream, and how sure their differences are.

Each variant gets the batches of the base: the same examples and sampled items in the same order, scored before learned.
Its quality is therefore kept in blocks of the very same examples (:class:`learner.prequential.TaskQuality`), and the
difference of two is resampled block by block: what both find hard cancels out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Batch, Bools, Int64s, Layout
from contracts.settings import Settings
from learner.evaluation import Quality
from learner.prequential import FIXED, Block, summary
from learner.trainer import Trainer

N_RESAMPLES = 2000
LEAST_BLOCKS = 16
LEAST_POSITIVES = 25
"""Fewer blocks, or positives, say too little about how blocks differ."""
_CONFIDENCE = 0.95
_CHUNK = 250

Float64s = NDArray[np.float64]


class Difference(NamedTuple):
    """Variant minus base, and the interval that holds it 19 times in 20; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


class Comparison:
    """Variants that learn beside a base.

    :param settings: the base's, by which the stream was made.
    :param variants: settings by name, equal to the base's in all that the ingest reads (`cli/_variants.py` refuses
        others), but that a task may wait for its labels where the base's does not.
    """

    def __init__(self, settings: Settings, layout: Layout, variants: Mapping[str, Settings]) -> None:
        at_once = np.array(settings.immediate_tasks)
        self._layout = layout
        self._seed = settings.seed
        self.trainers = {name: Trainer(variant, layout) for name, variant in variants.items()}
        self._waits = {name: at_once & ~np.array(variant.immediate_tasks) for name, variant in variants.items()}

    def step(self, batch: Batch) -> None:
        """Each variant scores, measures, learns."""
        for name, trainer in self.trainers.items():
            trainer.step(waiting(batch, self._waits[name]))

    def finish(self, batch: Batch) -> None:
        """At the end of a log: count what still waits for labels as it stands."""
        for trainer in self.trainers.values():
            trainer.measure(batch)
            trainer.quality.finish()

    def report(self, base: Quality) -> dict[str, dict[str, dict[str, Any]]]:
        """By variant and task: its own quality, as `evaluate --json` has it, and ``difference`` to the base."""
        return {
            name: {
                task: {**found, "difference": self._difference(base, trainer.quality, column)}
                for column, (task, found) in enumerate(trainer.quality.report().items())
            }
            for name, trainer in self.trainers.items()
        }

    def _difference(self, base: Quality, other: Quality, task: int) -> dict[str, Any]:
        return {
            part: differences(
                base.blocks(task, last_half=last_half), other.blocks(task, last_half=last_half), seed=self._seed
            )
            for part, last_half in (("all", False), ("last_half", True))
        }


def waiting(batch: Batch, tasks: Bools) -> Batch:
    """The batch as a learner sees it that waits for these tasks' labels, shape ``[T]``, though the stream does not."""
    if not tasks.any():
        return batch
    return replace(
        batch,
        learn=np.where(tasks, batch.known, batch.learn),
        matured_learn=np.where(tasks, batch.matured_known, batch.matured_learn),
        matured_late=batch.matured_late & ~tasks,
    )


def differences(
    base: Sequence[Block], other: Sequence[Block], *, seed: int, n_resamples: int = N_RESAMPLES
) -> dict[str, Any]:
    """NE and AUC of ``other`` minus those of ``base``, each with its percentile interval.

    A circular block bootstrap (Politis & Romano 1992; Künsch 1989): a resample strings together runs of B^(1/3)
    consecutive blocks. Differences that shrink while both learn widen the interval.

    :param base: B blocks of one task, in order of time; ``other``: the blocks of the same examples.
    :returns: ``ne`` and ``auc`` with ``value``, ``low``, ``high``; ``blocks``; and where there is no interval, why:
        ``note``.
    :raises ValueError: the blocks are not of the same examples.
    """
    if [block.counts[:2].tolist() for block in base] != [block.counts[:2].tolist() for block in other]:
        raise ValueError("A paired comparison needs blocks of the same examples; found other counts. Use one stream.")
    n_blocks = len(base)
    found = {name: _plain(base, other, name) for name in ("ne", "auc")}
    note = None
    if n_blocks < LEAST_BLOCKS:
        note = f"too few time blocks for an interval: {n_blocks}, needed {LEAST_BLOCKS}"
    elif (n_positives := sum(int(block.counts[1]) for block in base)) < LEAST_POSITIVES:
        note = f"too few positives for an interval: {n_positives}, needed {LEAST_POSITIVES}"
    else:
        weights = resample(n_blocks, n_resamples, np.random.default_rng(seed))
        drawn = _metrics(weights, other) - _metrics(weights, base)  # [2, R]
        if np.isnan(drawn).any():
            note = "no interval: positives lie in so few blocks that some resamples have none"
        else:
            tail = (1 - _CONFIDENCE) / 2
            bounds = np.quantile(drawn, [tail, 1 - tail], axis=1).T.tolist()
            found = {name: Difference(found[name].value, *ends) for name, ends in zip(found, bounds, strict=True)}
    made: dict[str, Any] = {name: one._asdict() for name, one in found.items()}
    return {**made, "blocks": n_blocks, **({"note": note} if note else {})}


def resample(n_blocks: int, n_resamples: int, rng: np.random.Generator) -> Int64s:
    """How often each block is drawn, shape ``[R, B]``; each row sums to B."""
    length = max(round(n_blocks ** (1 / 3)), 1)
    starts = rng.integers(0, n_blocks, (n_resamples, -(-n_blocks // length)))
    drawn = (starts[:, :, None] + np.arange(length)).reshape(n_resamples, -1)[:, :n_blocks] % n_blocks
    places = drawn + n_blocks * np.arange(n_resamples)[:, None]
    return np.bincount(places.ravel(), minlength=n_resamples * n_blocks).reshape(n_resamples, n_blocks)


def _plain(base: Sequence[Block], other: Sequence[Block], name: str) -> Difference:
    if not base:
        return Difference(None, None, None)
    a, b = (summary(sum(blocks[1:], blocks[0]))[name] for blocks in (base, other))
    return Difference(None if a is None or b is None else b - a, None, None)


def _metrics(weights: Int64s, blocks: Sequence[Block]) -> Float64s:
    """NE and AUC of each resample, shape ``[2, R]``; NaN where it has one class only."""
    counts = weights @ np.stack([block.counts for block in blocks])  # [R, 6]
    n, positives, loss = counts[:, 0], counts[:, 1], counts[:, 2] / FIXED
    histograms = np.stack([block.histogram for block in blocks]).astype(np.float64)  # [B, 2, BINS]
    histograms = histograms[:, :, histograms.any((0, 1))]
    flat = histograms.reshape(len(blocks), -1)
    pairs = np.empty(len(weights))
    for start in range(0, len(weights), _CHUNK):
        part = slice(start, start + _CHUNK)
        below, above = np.moveaxis((weights[part] @ flat).reshape(-1, *histograms.shape[1:]), 1, 0)  # [R, BINS] each
        pairs[part] = (above * (np.cumsum(below, 1) - below / 2)).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = positives / n
        ne = loss / n / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        auc = pairs / (positives.astype(np.float64) * (n - positives))
    return np.where((positives > 0) & (positives < n), np.stack([ne, auc]), np.nan)
