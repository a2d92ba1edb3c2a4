"""Ingest ahead of the learner: the stream is made by a thread of its own, a few batches ahead.

Compiled loops and torch let go of the interpreter lock, so that ingest and step share two cores. What is in the stream
does not depend on it.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from contracts.batch import Barrier, Batch, Int64s
from contracts.records import Offsets
from contracts.settings import Settings
from streamer.feed import OpenInputs, Rejected, Standing, rejected_of, standing_of

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_DEPTH = 4
_PATIENCE_SECONDS = 0.1


class Prefetched:
    """Iterates over a stream that a thread reads ahead; a context manager that ends the thread.

    The thread waits at each barrier until the next piece is asked for: a barrier lends the ingest side's state, which
    must not change while the learner saves it. An error of the stream is raised where it is iterated.
    """

    def __init__(self, stream: Iterator[Batch | Barrier], depth: int = _DEPTH) -> None:
        self._stream = stream
        self._queue: queue.Queue[Batch | Barrier | BaseException | None] = queue.Queue(depth)
        self._saved = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="anabranch-ingest", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._saved.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Batch | Barrier]:
        while True:
            piece = self._queue.get()
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            if isinstance(piece, Barrier):
                self._saved.set()

    def _read(self) -> None:
        try:
            for piece in self._stream:
                self._put(piece)
                if isinstance(piece, Barrier):
                    self._saved.wait()
                    self._saved.clear()
                if self._closed.is_set():
                    return
            self._put(None)
        except BaseException as error:  # whatever it is belongs to the reader
            self._put(error)

    def _put(self, piece: Batch | Barrier | BaseException | None) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(piece, timeout=_PATIENCE_SECONDS)
            except queue.Full:
                continue
            return


class ThreadFeed:
    """The :class:`~streamer.feed.Feed` in this process: one thread ahead of the learner's."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def open(
        self, settings: Settings, open_inputs: OpenInputs, registry: "CollectorRegistry", stop: Callable[[], bool]
    ) -> None:
        """Connect."""
        from streamer.metrics import StreamMetrics
        from streamer.pipeline import Ingest

        self._inputs = inputs = self._stack.enter_context(open_inputs(stop))
        self._ingest = Ingest(
            settings, inputs.source, inputs.decoder, inputs.dead_letters, StreamMetrics(registry), stop
        )

    def restore(self, groups: Mapping[str, dict[str, NDArray[Any]]], state: dict[str, Any]) -> None:
        """Take up an ingest's part of a snapshot."""
        self._ingest.restore(groups, state)

    def stream(self) -> Generator[Batch | Barrier]:
        """The stream, a few batches ahead."""
        with Prefetched(self._ingest.stream()) as stream:
            yield from stream

    def commit(self, offsets: Offsets) -> None:
        """Tell the source; its thread waits at the barrier meanwhile."""
        self._inputs.source.commit(offsets)

    def close_open_windows(self) -> Batch:
        """The examples still waiting, labelled as they stand."""
        return self._ingest.close_open_windows()

    def rejected(self) -> list[Rejected]:
        """Bad records by reason."""
        return rejected_of(self._inputs.dead_letters)

    def label_delays(self) -> Int64s:
        """Outcomes by time since their exposure."""
        return self._ingest.label_delays

    @property
    def standing(self) -> Standing:
        """How far the ingest is."""
        return standing_of(self._ingest, self._inputs.source)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
