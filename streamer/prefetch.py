"""Ingest ahead of the learner: the stream is made by a thread of its own, a few batches ahead.

Compiled loops and torch let go of the interpreter lock, so that ingest and step share two cores. What is in the stream
does not depend on it.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from contracts.batch import Barrier, Batch, Int64s
from contracts.records import Offsets
from contracts.settings import Settings
from streamer.attended import Attended
from streamer.feed import STALLED_SECONDS, OpenInputs, Rejected, Standing, rejected_of, standing_of

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_DEPTH = 4
_PATIENCE_SECONDS = 0.1
_STALLED_WAITS = int(STALLED_SECONDS / _PATIENCE_SECONDS)


class Prefetched:
    """Iterates over a stream that a thread reads ahead; a context manager that ends the thread.

    The thread goes on behind a barrier, but waits at the next one until the one before was released: so that not more
    than two copies of the ingest's state are held. An error of the stream is raised where it is iterated.

    :param on_stall: called in that thread when nobody has taken a piece for two seconds, and again after as long.
    """

    def __init__(
        self,
        stream: Iterator[Batch | Barrier],
        depth: int = _DEPTH,
        on_stall: Callable[[], None] = lambda: None,
    ) -> None:
        self._stream = stream
        self._on_stall = on_stall
        self._queue: queue.Queue[Batch | Barrier | BaseException | None] = queue.Queue(depth)
        self._released = threading.Event()
        self._released.set()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="anabranch-ingest", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._released.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Batch | Barrier]:
        while True:
            piece = self._queue.get()
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def _read(self) -> None:
        try:
            for piece in self._stream:
                if isinstance(piece, Barrier):
                    while not self._released.wait(STALLED_SECONDS):
                        self._on_stall()
                    self._released.clear()
                    piece = replace(piece, release=partial(self._release, piece.release))
                self._put(piece)
                if self._closed.is_set():
                    return
            self._put(None)
        except BaseException as error:  # whatever it is belongs to the reader
            self._put(error)

    def _release(self, release: Callable[[], None]) -> None:
        release()
        self._released.set()

    def _put(self, piece: Batch | Barrier | BaseException | None) -> None:
        waited = 0
        while not self._closed.is_set():
            try:
                self._queue.put(piece, timeout=_PATIENCE_SECONDS)
            except queue.Full:
                waited += 1
                if waited % _STALLED_WAITS == 0:
                    self._on_stall()
                continue
            return


class ThreadFeed:
    """The :class:`~streamer.feed.Feed` in this process: one thread ahead of the learner's."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._reads = False
        self._commits: queue.SimpleQueue[Offsets] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def open(
        self, settings: Settings, open_inputs: OpenInputs, registry: "CollectorRegistry", stop: Callable[[], bool]
    ) -> None:
        """Connect."""
        from streamer.metrics import StreamMetrics
        from streamer.pipeline import Ingest

        self._inputs = inputs = self._stack.enter_context(open_inputs(stop))
        source = Attended(inputs.source, self._commit_all)
        self._ingest = Ingest(settings, source, inputs.decoder, inputs.dead_letters, StreamMetrics(registry), stop)

    def restore(self, groups: Mapping[str, dict[str, NDArray[Any]]], state: dict[str, Any]) -> None:
        """Take up an ingest's part of a snapshot."""
        self._ingest.restore(groups, state)

    def stream(self) -> Generator[Batch | Barrier]:
        """The stream, a few batches ahead."""
        self._reads = True
        try:
            with Prefetched(self._ingest.stream(), on_stall=partial(self._ingest.tell, stalled=True)) as stream:
                yield from stream
        finally:
            self._reads = False

    def commit(self, offsets: Offsets) -> None:
        """Tell the source, at its next poll; at once where nobody polls any more."""
        self._commits.put(offsets)
        if not self._reads:
            self._commit_all()

    def _commit_all(self) -> None:
        while not self._commits.empty():
            self._inputs.source.commit(self._commits.get())

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
