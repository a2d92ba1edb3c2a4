"""What the learner's process and the ingest's say to each other; each end keeps its own part of it.

Orders are tuples of a name and arguments. ``open``, ``restore``, ``stream``, ``close_open_windows``, ``rejected`` and
``label_delays`` have an answer; ``free``, ``commit`` and ``close`` may come at any time and have none. An exception is
an ingest's last word.
"""

from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from streamer.feed import Standing
from streamer.wire import Message, Segment


class Links(NamedTuple):
    """What the two processes share, seen from the ingest's."""

    orders: "Connection[Any, Any]"
    scrapes: "Connection[Any, Any]"
    flags: Segment
    """One byte: whether to stop. The ingest looks at it between records, and a signal's moment needs no lock."""
    slots: list[Segment]
    """Batches, and last the barriers."""
    handover: Segment
    """The ingest's part of the snapshot it starts from: written once, then the ingest's own."""


class Piece(NamedTuple):
    """A batch or a barrier lies in a slot."""

    slot: int
    message: Message
    standing: Standing


class Answer(NamedTuple):
    """An order is carried out."""

    value: Any
