"""The ingest in a process of its own: the other side of `streamer/process.py`. No torch here, and no learner."""

import gc
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from prometheus_client import CollectorRegistry

from contracts.batch import Barrier, Batch, nothing_to_release
from contracts.settings import Settings
from streamer.attended import Attended
from streamer.feed import STALLED_SECONDS, IngestProcessError, Inputs, OpenInputs, Standing, rejected_of, standing_of
from streamer.link import Answer, Links, Piece
from streamer.metrics import StreamMetrics, answer_scrapes
from streamer.pipeline import Ingest
from streamer.wire import Message


class _ClosedError(Exception):
    """The other side wants nothing more."""


def run(links: Links) -> None:
    """Wait for orders and carry them out until there are no more."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry)
    threading.Thread(target=_accompany, args=(links.scrapes, registry), daemon=True).start()
    try:
        _, settings, open_inputs = links.orders.recv()
        _serve(links, metrics, settings, open_inputs)
    except _ClosedError:
        return
    except BaseException as error:  # whatever it is belongs to the other side
        try:
            links.orders.send(_portable(error))
        except OSError:
            return


def _serve(links: Links, metrics: StreamMetrics, settings: Settings, open_inputs: OpenInputs) -> None:
    flags = links.flags.memory(1)

    def stop() -> bool:
        return flags[0] != 0

    with open_inputs(stop) as inputs:
        _Desk(links, inputs, metrics, settings, stop).serve()


class _Desk:
    """The ingest, doing what it is told; what it makes is put into slots, as they become free."""

    def __init__(
        self, links: Links, inputs: Inputs, metrics: StreamMetrics, settings: Settings, stop: Callable[[], bool]
    ) -> None:
        self._links = links
        self._inputs = inputs
        source = Attended(inputs.source, self._attend_all)
        self._ingest = Ingest(settings, source, inputs.decoder, inputs.dead_letters, metrics, stop)
        *self._batch_slots, self._barrier_slot = range(len(links.slots))
        self._free = {*self._batch_slots, self._barrier_slot}
        self._release: Callable[[], None] = nothing_to_release

    def serve(self) -> NoReturn:
        """Carry out orders.

        :raises _ClosedError: the last one came.
        """
        self._answer(None)
        while True:
            match self._links.orders.recv():
                case ("restore", message):
                    self._restore(message)
                    self._answer(None)
                case ("stream",):
                    self._answer(self._stream())
                case ("close_open_windows",):
                    self._hand_over(self._ingest.close_open_windows())
                case ("rejected",):
                    self._answer(rejected_of(self._inputs.dead_letters))
                case ("label_delays",):
                    self._answer(self._ingest.label_delays)
                case order:
                    self._attend(*order)

    def _restore(self, message: Message) -> None:
        # Nobody writes there again: the ingest may keep the arrays.
        groups, state = self._links.handover.read(message)
        self._links.handover.close()
        self._ingest.restore(groups, state)

    def _stream(self) -> Standing:
        # Imports brought a million objects that live as long as the process: the garbage collector need not look at
        # them again and again.
        gc.freeze()
        gc.enable()
        for piece in self._ingest.stream():
            self._hand_over(piece)
        return self._standing()

    def _standing(self) -> Standing:
        return standing_of(self._ingest, self._inputs.source)

    def _answer(self, value: object) -> None:
        self._links.orders.send(Answer(value))

    def _hand_over(self, piece: Batch | Barrier) -> None:
        wanted = [self._barrier_slot] if isinstance(piece, Barrier) else self._batch_slots
        while not (free := self._free.intersection(wanted)):
            if self._links.orders.poll(STALLED_SECONDS):
                self._attend(*self._links.orders.recv())
            else:
                self._ingest.tell(stalled=True)
        slot = free.pop()
        self._free.remove(slot)
        if isinstance(piece, Barrier):
            self._release, piece = piece.release, replace(piece, release=nothing_to_release)
        message = self._links.slots[slot].write(piece)
        self._links.orders.send(Piece(slot, message, self._standing()))

    def _attend_all(self) -> None:
        while self._links.orders.poll():
            self._attend(*self._links.orders.recv())

    def _attend(self, name: str, *arguments: Any) -> None:
        """Take one of the orders that may come at any time."""
        if name == "free":
            self._free.add(arguments[0])
            if arguments[0] == self._barrier_slot:
                self._release()
        elif name == "commit":
            self._inputs.source.commit(arguments[0])
        else:
            raise _ClosedError


def _accompany(scrapes: "Connection[Any, Any]", registry: CollectorRegistry) -> NoReturn:
    """Answer scrapes; when the other side is gone, however it went, this process is, too."""
    try:
        answer_scrapes(scrapes, registry)
    finally:
        os._exit(1)


def _portable(error: BaseException) -> BaseException:
    """The error with its traceback as a note, if it can cross; else its text."""
    error.add_note(f"In the ingest process:\n{''.join(traceback.format_exception(error))}")
    try:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - what was dumped a moment ago
    except Exception:  # pickle lets an error's own code decide what can go wrong
        copy = None
    return copy if type(copy) is type(error) else IngestProcessError(f"{type(error).__name__}: {error}")
