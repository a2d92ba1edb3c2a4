"""Micro-batching: events gathered as columns until a mini-batch closes, by rows or by event time."""

from array import array
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Float32s, Int64s
from contracts.events import Event
from contracts.settings import BatchSettings
from features.encoder import EventColumns
from features.schema import FeatureSchema

_INTEGERS = 11
_SAVED = ("has_truth", "n_events", "n_rows", "first_event_ms", "last_request")
_NO_TASK = -1
_NO_SLOT = -1
MOST_BATCHES = 4
"""A batch never splits a request; one that is longer than this many full batches is split all the same."""


class EventBuffer:
    """The events of the batch that is being gathered, as columns.

    :param truths: names of the tasks, to pick the simulator's probabilities by.
    """

    def __init__(self, schema: FeatureSchema, truths: tuple[str, ...], settings: BatchSettings) -> None:
        self._truths = truths
        self._settings = settings
        self._readers = (schema.item, schema.user, schema.context)
        self._no_truth = array("f", [nan] * len(truths))
        self._clear()

    def _clear(self) -> None:
        self._integers = array("q")
        self._attributes = tuple(array("q") for _ in self._readers)
        self._numbers = tuple(array("f") for _ in self._readers)
        self._truth = array("f")
        self.has_truth = False
        self.n_events = 0
        self.n_rows = 0
        self.first_event_ms = -1
        self.last_request: str | None = None

    def add(
        self,
        event: Event,
        kind: int,
        user: int,
        item: int,
        *,
        emit: bool = False,
        keep: bool = False,
        negatives: int = 0,
        rank: bool = False,
        slot: int = _NO_SLOT,
        task: int = _NO_TASK,
        list_id: int = 0,
    ) -> None:
        """Append one event; ``task`` is the task that the event is a positive of at once."""
        self._integers.extend((kind, user, item, event.ts_ms, emit, keep, negatives, rank, slot, task, list_id))
        readers, hashes, numbers = self._readers, self._attributes, self._numbers
        readers[0].append_to(hashes[0], numbers[0], event.item, item)
        readers[1].append_to(hashes[1], numbers[1], event.user, user)
        readers[2].append_to(hashes[2], numbers[2], event.context, None)
        truth = event.truth
        if truth:
            self.has_truth = True
            self._truth.extend([truth.get(name, nan) for name in self._truths])
        else:
            self._truth.extend(self._no_truth)
        if not self.n_events:
            self.first_event_ms = event.ts_ms
        self.n_events += 1
        if emit:
            self.n_rows += 1 + negatives
        self.last_request = event.request_id

    def due(self, now_ms: int, request: str | None, n_matured: int) -> bool:
        """Whether the batch closes before an event of this time and request."""
        if not self.n_events:
            return n_matured >= self._settings.max_rows
        settings, n_rows = self._settings, self.n_rows + n_matured
        full = n_rows >= settings.max_rows or (
            n_rows >= settings.min_rows and now_ms - self.first_event_ms >= settings.span_ms
        )
        same_request = bool(request) and request == self.last_request
        return full and (not same_request or n_rows >= MOST_BATCHES * settings.max_rows)

    def save(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and small state: the events that no batch has yet."""
        arrays: dict[str, NDArray[Any]] = {"integers": np.array(self._integers, np.int64)}
        for place in range(len(self._readers)):
            arrays[f"attributes.{place}"] = np.array(self._attributes[place], np.int64)
            arrays[f"numbers.{place}"] = np.array(self._numbers[place], np.float32)
        arrays["truth"] = np.array(self._truth, np.float32)
        return arrays, {name: getattr(self, name) for name in _SAVED}

    def restore(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        """The inverse of :meth:`save`."""
        self._integers = array("q", arrays["integers"].tolist())
        self._attributes = tuple(array("q", arrays[f"attributes.{n}"].tolist()) for n in range(len(self._readers)))
        self._numbers = tuple(array("f", arrays[f"numbers.{n}"].tolist()) for n in range(len(self._readers)))
        self._truth = array("f", arrays["truth"].tolist())
        for name in _SAVED:
            setattr(self, name, state[name])

    def take(self) -> tuple[EventColumns, Int64s, Int64s, Int64s, Float32s | None]:
        """The columns, then per event slot, task and list id, then the truths (or None); the buffer is empty again."""
        n_events = self.n_events
        integers = np.array(self._integers, np.int64).reshape(n_events, _INTEGERS).T.copy()
        kind, user, item, time_ms, emit, keep, negatives, rank, slot, task, list_id = integers
        attributes = [
            np.array(flat, np.int64).reshape(n_events, len(reader.categorical))
            for flat, reader in zip(self._attributes, self._readers, strict=True)
        ]
        numbers = [
            np.array(flat, np.float32).reshape(n_events, len(reader.numeric))
            for flat, reader in zip(self._numbers, self._readers, strict=True)
        ]
        truth = np.array(self._truth, np.float32).reshape(n_events, len(self._truths)) if self.has_truth else None
        columns = EventColumns(
            kind=kind,
            user=user,
            item=item,
            time_ms=time_ms,
            emit=emit,
            keep=keep,
            negatives=negatives,
            rank=rank,
            item_attributes=attributes[0],
            item_numbers=numbers[0],
            user_attributes=attributes[1],
            user_numbers=numbers[1],
            context_attributes=attributes[2],
            context_numbers=numbers[2],
        )
        self._clear()
        return columns, slot, task, list_id, truth
