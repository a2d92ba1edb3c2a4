"""Micro-batching: events gathered as columns until a mini-batch closes, by rows or by event time."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Float32s, Int64s
from contracts.settings import BatchSettings
from features.compiled import compiled
from features.encoder import EventColumns
from features.idmap import Integer
from features.schema import FeatureSchema

MOST_BATCHES = 4
"""A batch never splits a request, nor what a user did with an item in one millisecond; where that is longer than this
many full batches, it is split all the same."""
_NOTHING = (0, 0, -1, 0, 0, 0, -1)

N_INTEGERS = 11
KIND, USER, ITEM, TIME_MS, EMIT, KEEP, NEGATIVES, RANK, LIST_ID, SLOT, TASK = range(N_INTEGERS)
"""Rows of ``Piece.integers``; ``TASK``: the task that the event is a positive of at once. No slot, no task: -1."""

N_EVENTS, N_ROWS, FIRST_EVENT_MS, LAST_REQUEST, LAST_USER, LAST_ITEM, LAST_MS = range(7)
"""Places in ``EventBuffer.counts``."""


class Piece(NamedTuple):
    """N events of an open batch."""

    integers: Int64s  # [11, N]
    attributes: tuple[Int64s, ...]  # of item, user and context, [N, ids]
    numbers: tuple[Float32s, ...]  # [N, numeric]
    truth: Float32s | None  # [N, T], the simulator's probabilities


@compiled
def due(
    counts: Int64s,
    limits: Int64s,
    now_ms: Integer,
    request: Integer,
    user: Integer,
    item: Integer,
    n_matured: Integer,
) -> bool:
    """Whether the batch closes before an event of this time, request (0: none), user and item.

    :param limits: ``max_rows``, ``min_rows``, ``span_ms``.
    """
    max_rows, min_rows, span_ms = limits
    if counts[N_EVENTS] == 0:
        return bool(n_matured >= max_rows)
    n_rows = counts[N_ROWS]
    full = (
        n_rows >= max_rows
        or n_matured >= MOST_BATCHES * max_rows
        or (n_rows + n_matured >= min_rows and now_ms - counts[FIRST_EVENT_MS] >= span_ms)
    )
    same_request = request != 0 and request == counts[LAST_REQUEST]
    same_instant = now_ms == counts[LAST_MS] and user == counts[LAST_USER] and item == counts[LAST_ITEM]
    return bool(full and (not (same_request or same_instant) or n_rows >= MOST_BATCHES * max_rows))


@compiled
def count(counts: Int64s, time_ms: Integer, request: Integer, user: Integer, item: Integer, n_rows: Integer) -> None:
    """An event joins the open batch."""
    if counts[N_EVENTS] == 0:
        counts[FIRST_EVENT_MS] = time_ms
    counts[N_EVENTS] += 1
    counts[N_ROWS] += n_rows
    counts[LAST_REQUEST], counts[LAST_USER], counts[LAST_ITEM], counts[LAST_MS] = request, user, item, time_ms


class EventBuffer:
    """The events of the batch that is being gathered, as columns.

    :param n_tasks: columns of the truths.
    """

    def __init__(self, schema: FeatureSchema, n_tasks: int, settings: BatchSettings) -> None:
        self._readers = (schema.item, schema.user, schema.context)
        self._n_tasks = n_tasks
        self.limits = np.array([settings.max_rows, settings.min_rows, settings.span_ms], np.int64)
        self.counts = np.array(_NOTHING, np.int64)
        self._pieces: list[Piece] = []

    @property
    def n_events(self) -> int:
        """Events in the open batch."""
        return int(self.counts[N_EVENTS])

    @property
    def first_event_ms(self) -> int:
        """Event time of its first event; -1: it has none."""
        return int(self.counts[FIRST_EVENT_MS])

    def add(self, piece: Piece) -> None:
        """Append events that :func:`count` has counted."""
        self._pieces.append(piece)

    def save(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and small state: the events that no batch has yet."""
        piece = self._joined()
        arrays: dict[str, NDArray[Any]] = {"integers": piece.integers, "counts": self.counts.copy()}
        for place in range(len(self._readers)):
            arrays |= {f"attributes.{place}": piece.attributes[place], f"numbers.{place}": piece.numbers[place]}
        if piece.truth is not None:
            arrays["truth"] = piece.truth
        return arrays, {}

    def restore(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:  # noqa: ARG002 - all is in arrays
        """The inverse of :meth:`save`."""
        attributes = tuple(arrays[f"attributes.{place}"] for place in range(len(self._readers)))
        numbers = tuple(arrays[f"numbers.{place}"] for place in range(len(self._readers)))
        self._pieces = [Piece(arrays["integers"], attributes, numbers, arrays.get("truth"))]
        self.counts[:] = arrays["counts"]

    def take(self) -> tuple[EventColumns, Int64s, Int64s, Float32s | None]:
        """The columns, then per event slot and task, then the truths (or None); the buffer is empty again."""
        piece = self._joined()
        *columns, slot, task = piece.integers
        about = [column for pair in zip(piece.attributes, piece.numbers, strict=True) for column in pair]
        self._pieces = []
        self.counts[:] = _NOTHING
        return EventColumns(*columns, *about), slot, task, piece.truth

    def _joined(self) -> Piece:
        pieces = self._pieces
        if len(pieces) == 1:
            return pieces[0]
        attributes, numbers = (
            tuple(
                np.concatenate([np.empty((0, width), kind), *(getattr(piece, name)[place] for piece in pieces)])
                for place, width in enumerate(widths)
            )
            for name, kind, widths in (
                ("attributes", np.int64, [reader.n_ids for reader in self._readers]),
                ("numbers", np.float32, [len(reader.numeric) for reader in self._readers]),
            )
        )
        integers = np.concatenate([np.empty((N_INTEGERS, 0), np.int64), *(piece.integers for piece in pieces)], axis=1)
        joined = Piece(integers, attributes, numbers, self._truth(pieces))
        self._pieces = [joined] if pieces else []
        return joined

    def _truth(self, pieces: list[Piece]) -> Float32s | None:
        if all(piece.truth is None for piece in pieces):
            return None
        return np.concatenate(
            [
                np.full((piece.integers.shape[1], self._n_tasks), np.nan, np.float32)
                if piece.truth is None
                else piece.truth
                for piece in pieces
            ]
        )
