"""The ingest in a process of its own: this side starts it, reads its pieces and tells it what to do (ADR 8).

Two pipes join the processes: one carries orders there and small messages back, the other metrics. Arrays cross through
shared memory (`streamer/wire.py`): a ring of slots for batches and one slot for barriers. The ingest waits for a free
slot, so it is never more than the ring ahead; a barrier is a copy, so the ingest goes on while the learner saves, up to
the next one.
"""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from contracts.batch import Barrier, Batch, Int64s
from contracts.records import Offsets
from contracts.settings import Settings
from streamer.feed import Feed, IngestProcessError, OpenInputs, Rejected, Standing
from streamer.link import Answer, Links, Piece
from streamer.prefetch import ThreadFeed
from streamer.wire import Segment

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

DEPTH = 4
_LOOK_SECONDS = 0.1
_LEAVE_SECONDS = 12.0
"""To leave the group and disconnect: each may take five seconds where the broker is gone."""


class ProcessFeed:
    """The :class:`~streamer.feed.Feed` whose ingest is another process. That process never outlives this one.

    SIGINT and SIGTERM are this process's to answer: the other one ignores them and is told to stop.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # threads of torch and Kafka do not survive a fork
        self._orders, theirs = context.Pipe()
        self._ordering = threading.Lock()  # a barrier is released, and its offsets committed, from the writer's thread
        self._scrapes, their_scrapes = context.Pipe()
        self._flags, self._handover = Segment(), Segment()
        self._slots = [Segment() for _ in range(DEPTH + 1)]
        self._theirs = Links(theirs, their_scrapes, self._flags, self._slots, self._handover)
        self._process = context.Process(target=_run, args=self._theirs, name="anabranch-ingest", daemon=True)
        self._stop: Callable[[], bool] = lambda: False
        self._opened = False
        self._standing = Standing({}, 0, 0, 0.0)

    @property
    def pid(self) -> int | None:
        """The ingest's process."""
        return self._process.pid

    @property
    def standing(self) -> Standing:
        """How far the ingest was when it made the piece that was read last."""
        return self._standing

    def __enter__(self) -> Self:
        # The child inherits the mask: a Ctrl-C while it starts must not end it. (The tracker's start lifts the mask.)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            # Ours alone are left open: if the child dies, its ends close, and reading tells.
            self._theirs.orders.close()
            self._theirs.scrapes.close()
        return self

    def open(
        self, settings: Settings, open_inputs: OpenInputs, registry: "CollectorRegistry", stop: Callable[[], bool]
    ) -> None:
        """Connect.

        :raises IngestProcessError: the process is gone. Other errors are the process's own.
        """
        from streamer.metrics import RemoteMetrics

        self._stop = stop
        self._ask("open", settings, open_inputs)
        self._opened = True
        registry.register(RemoteMetrics(self._scrapes))

    def restore(self, groups: Mapping[str, dict[str, NDArray[Any]]], state: dict[str, Any]) -> None:
        """Take up an ingest's part of a snapshot."""
        self._ask("restore", self._handover.write((dict(groups), state)))
        self._handover.close()

    def stream(self) -> Generator[Batch | Barrier]:
        """The stream."""
        self._order("stream")
        while isinstance(received := self._receive(), Piece):
            piece, free = self._slots[received.slot].read(received.message), partial(self._order, "free", received.slot)
            if isinstance(piece, Barrier):
                yield replace(piece, release=free)
            else:
                yield piece
                free()
        self._standing = received.value

    def commit(self, offsets: Offsets) -> None:
        """Tell the source, at its next poll."""
        self._order("commit", offsets)

    def close_open_windows(self) -> Batch:
        """The examples still waiting, labelled as they stand."""
        piece = self._ask("close_open_windows")
        batch: Batch = self._slots[piece.slot].read(piece.message)
        return batch

    def rejected(self) -> list[Rejected]:
        """Bad records by reason."""
        found: list[Rejected] = self._ask("rejected")
        return found

    def label_delays(self) -> Int64s:
        """Outcomes by time since their exposure."""
        found: Int64s = self._ask("label_delays")
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # A second Ctrl-C means at once.
            if self._opened and (kind is None or issubclass(kind, Exception)):
                self._leave(quietly=error is not None)
        finally:
            if self._process.is_alive():
                self._process.kill()
            self._process.join()
            self._process.close()
            self._orders.close()
            self._scrapes.close()
            for segment in (self._flags, self._handover, *self._slots):
                segment.close()

    def _leave(self, *, quietly: bool) -> None:
        """Let the process leave its group and end; what it still says on the way is dropped, but for an error."""
        self._order("close")
        last_words = None
        try:
            while self._orders.poll(_LEAVE_SECONDS):
                last_words = self._orders.recv()
        except (EOFError, OSError):
            self._process.join(_LEAVE_SECONDS)
        if isinstance(last_words, BaseException) and not quietly:
            raise last_words

    def _order(self, name: str, *arguments: Any) -> None:
        try:
            with self._ordering:
                self._orders.send((name, *arguments))
        except OSError:
            # Its last words may lie in the pipe: whoever reads next finds them, or the end.
            return

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._order(name, *arguments)
        received = self._receive()
        return received.value if isinstance(received, Answer) else received

    def _receive(self) -> Any:
        """The next message; meanwhile a stop is passed on.

        :raises BaseException: the process's own error.
        :raises IngestProcessError: the process is gone.
        """
        try:
            while True:
                if self._stop():
                    self._flags.memory(1)[0] = 1
                if self._orders.poll(_LOOK_SECONDS):
                    break
            received = self._orders.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(received, BaseException):
            raise received
        if isinstance(received, Piece):
            self._standing = received.standing
        return received

    def _ended(self) -> IngestProcessError:
        self._process.join(_LEAVE_SECONDS)
        code = self._process.exitcode
        how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
        hint = " The kernel does this when memory runs out (see its log)." if code == -signal.SIGKILL else ""
        return IngestProcessError(
            f"The ingest process (pid {self._process.pid}) ended by {how}.{hint} Start again: work goes on from the "
            "last snapshot. `processes = 1` runs the ingest in the learner's process."
        )


def start_feed(processes: int = 0) -> Feed:
    """The feed for a setting `processes`. Enter it early: a process of its own imports while this one does, too.

    :param processes: 1: a thread of this process; 2: a process of its own; 0: two where there are two cores.
    """
    return ProcessFeed() if (processes or min(_usable_cores(), 2)) == 2 else ThreadFeed()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(*links: Any) -> None:
    # Until the stream begins: looking through what imports bring, again and again, is a third of their time.
    gc.disable()
    # Imported in the child only: what it takes to ingest is what that process starts with.
    from streamer.child import run

    run(Links(*links))
