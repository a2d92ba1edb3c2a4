"""Ourselves at a rival's job: the learner alone, over batches that are decoded, joined and encoded already.

It measures its quality meanwhile, and labels come when their windows say, as in the whole pipeline.
"""

import copy
import time
from pathlib import Path

from prometheus_client import CollectorRegistry

from benchmarks.peers._result import Result
from contracts.batch import Batch
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
            self._batches = [copy.deepcopy(cut) for cut in ingest.stream() if isinstance(cut, Batch)]
            self._last = ingest.close_open_windows()
        self._n_events = ingest.n_events

    def run(self) -> Result:
        """A new trainer over all batches."""
        use_threads(self._settings)
        trainer = Trainer(self._settings, FeatureSchema.of(self._settings).layout)
        started = time.perf_counter()
        for batch in self._batches:
            trainer.step(batch)
        seconds = time.perf_counter() - started
        trainer.measure(self._last)
        trainer.quality.finish()
        found = trainer.quality.report()
        return Result(self._n_events / seconds, {name: task["last_half"]["ne"] for name, task in found.items()})
