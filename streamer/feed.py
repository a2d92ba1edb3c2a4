"""What the learner's side needs of an ingest, whether it runs in this process or in one of its own."""

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from numpy.typing import NDArray

from contracts.batch import Barrier, Batch, Int64s
from contracts.records import Offsets
from contracts.settings import Settings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from streamer.deadletter import DeadLetterSink
    from streamer.decode import EventDecoder
    from streamer.pipeline import Ingest
    from streamer.sources._base import Source


class IngestProcessError(RuntimeError):
    """The ingest's process ended without saying why."""


@dataclass(frozen=True)
class Inputs:
    """What an ingest reads from, and where it puts what it cannot read."""

    source: "Source"
    decoder: "EventDecoder"
    dead_letters: "DeadLetterSink"


STALLED_SECONDS = 2.0
"""An ingest that has waited so long for the learner says how far behind it is, and again after as long."""

OpenInputs = Callable[[Callable[[], bool]], AbstractContextManager[Inputs]]
"""Connects, and lets go at the end; what it is given tells whether to give up waiting. It crosses to another process: a
function of a module, or a `partial` of one."""


class Standing(NamedTuple):
    """How far the ingest is, as of the piece that was handed over last."""

    offsets: Offsets
    n_events: int
    n_rejected: int
    progress: float
    """Share of a bounded source that was read, 0 to 1."""


class Rejected(NamedTuple):
    """The bad records of one reason."""

    reason: str
    n_records: int
    first_offset: int
    detail: str


class Feed(Protocol):
    """An ingest. The order of use is that of the methods; leaving the context lets go of everything.

    A piece's arrays are borrowed: they are valid until the next piece is asked for.
    """

    def __enter__(self) -> Self: ...

    def open(
        self, settings: Settings, open_inputs: OpenInputs, registry: "CollectorRegistry", stop: Callable[[], bool]
    ) -> None:
        """Connect; the ingest's metrics are in ``registry`` from here on.

        :param stop: true ends the stream after the current batch.
        :raises Exception: whatever ``open_inputs`` raises.
        """

    def restore(self, groups: Mapping[str, dict[str, NDArray[Any]]], state: dict[str, Any]) -> None:
        """Take up an ingest's part of a snapshot, as :meth:`streamer.pipeline.Ingest.restore`."""

    def stream(self) -> Generator[Batch | Barrier]:
        """The stream, made ahead of whoever reads it.

        :raises Exception: whatever ends the ingest, behind the pieces before it.
        """

    def commit(self, offsets: Offsets) -> None:
        """Tell the outside that a snapshot stands at these offsets."""

    def close_open_windows(self) -> Batch:
        """After the stream: the examples still waiting, labelled as they stand."""

    def rejected(self) -> list[Rejected]:
        """After the stream: bad records by reason, the most frequent first; empty where they went to a topic."""

    def label_delays(self) -> Int64s:
        """After the stream: outcomes by time since their exposure, ``[T, 160]`` (`streamer.join.delay_bounds_ms`).

        Of exposures that were still open: what comes after the longest window is an orphan.
        """

    @property
    def standing(self) -> Standing:
        """How far the ingest is."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def standing_of(ingest: "Ingest", source: "Source") -> Standing:
    """How far it is now; only a file knows its end."""
    from streamer.sources.file import FileSource

    progress = source.progress() if isinstance(source, FileSource) else 0.0
    return Standing(ingest.offsets, ingest.n_events, ingest.n_rejected, progress)


def rejected_of(dead_letters: "DeadLetterSink") -> list[Rejected]:
    """The bad records that a sink in memory keeps, by reason."""
    from streamer.deadletter import MemoryDeadLetters

    letters = dead_letters.letters if isinstance(dead_letters, MemoryDeadLetters) else ()
    first = {letter.reason: letter for letter in reversed(letters)}
    return [
        Rejected(reason, n_records, first[reason].record.offset, first[reason].detail)
        for reason, n_records in Counter(letter.reason for letter in letters).most_common()
    ]
