"""Ourselves at a rival's job: the learner alone, over batches that are decoded, joined and encoded already.

It measures its quality meanwhile. Labels come when their windows say, as in the whole pipeline; or each with its
exposure, as the rivals are told it.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.peers._result import Result
from benchmarks.peers.joined import Joined
from contracts.batch import Batch, Bools, Float32s
from contracts.settings import Settings
from features.schema import FeatureSchema
from learner.trainer import Trainer, use_threads
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.sources.file import FileSource


class ReadyBatches:
    """:param path: the log that the joined examples were made of."""

    name = "Anabranch, learner alone on ready batches"

    def __init__(self, path: Path, settings: Settings) -> None:
        self._settings = settings
        with FileSource(path) as source:
            decoder = EventDecoder(settings, None, lambda: 1 << 52)
            ingest = Ingest(settings, source, decoder, MemoryDeadLetters(), StreamMetrics(CollectorRegistry()))
            # A batch's arrays are borrowed from the ingest: only a copy outlives the next one.
            self.batches = [copy.deepcopy(cut) for cut in ingest.stream() if isinstance(cut, Batch)]
            self._last = ingest.close_open_windows()
        self._n_events = ingest.n_events

    def run(self) -> Result:
        """A new trainer over all batches."""
        use_threads(self._settings)
        trainer = Trainer(self._settings, FeatureSchema.of(self._settings).layout)
        started = time.perf_counter()
        for batch in self.batches:
            trainer.step(batch)
        seconds = time.perf_counter() - started
        trainer.measure(self._last)
        trainer.quality.finish()
        found = trainer.quality.report()
        return Result(self._n_events / seconds, {name: task["last_half"]["ne"] for name, task in found.items()})


class ReadyExamples:
    """Batches of the joined examples, every outcome told at its exposure: what rivals get with our features.

    :param path: the log that the joined examples were made of.
    """

    name = "Anabranch, learner alone, told each outcome at its exposure"

    def __init__(self, joined: Joined, path: Path, settings: Settings) -> None:
        self._joined = joined
        # Nothing is learned before its label is known: no fake negatives.
        tasks = tuple(task.model_copy(update={"delay": "wait"}) for task in settings.tasks)
        self._settings = settings.model_copy(update={"tasks": tasks})
        labels = np.zeros((len(joined.ids), len(joined.tasks)), np.float32)
        known = np.zeros(labels.shape, np.bool_)
        for task, labelled in enumerate(joined.tasks.values()):
            labels[labelled.rows, task], known[labelled.rows, task] = labelled.labels, True
        self._batches, first = [], 0
        for batch in ReadyBatches(path, settings).batches:
            these, first = slice(first, first + len(batch.rows)), first + len(batch.rows)
            self._batches.append(_told(batch, labels[these], known[these]))
        self._ne: Mapping[str, float | None] = {}

    def run(self) -> Result:
        """A new trainer over all batches; the first time another one before, for the logits of each row."""
        use_threads(self._settings)
        layout = FeatureSchema.of(self._settings).layout
        if not self._ne:
            trainer, logits = Trainer(self._settings, layout), []
            for batch in self._batches:
                logits.append(trainer.logits(batch.rows))
                trainer.step(batch)
            of_rows = np.concatenate(logits)
            self._ne = {
                task: self._joined.ne(task, of_rows[self._joined.in_order(task)[0], column])
                for column, task in enumerate(self._joined.tasks)
            }
        trainer = Trainer(self._settings, layout)
        started = time.perf_counter()
        for batch in self._batches:
            trainer.step(batch)
        return Result(self._joined.n_events / (time.perf_counter() - started), self._ne)


def _told(batch: Batch, labels: Float32s, known: Bools) -> Batch:
    none = slice(0)
    return replace(
        batch,
        slot=np.full(len(batch.rows), -1, np.int64),
        labels=labels,
        known=known,
        learn=known,
        matured_slot=batch.matured_slot[none],
        matured_labels=batch.matured_labels[none],
        matured_known=batch.matured_known[none],
        matured_learn=batch.matured_learn[none],
        matured_late=batch.matured_late[none],
    )
