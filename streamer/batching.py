"""Micro-batching: events gathered as columns until a mini-batch closes, by rows or by event time."""

from array import array
from math import nan

import numpy as np

from contracts.batch import Float32s, Int64s
from contracts.events import Event
from contracts.settings import BatchSettings
from features.encoder import EventColumns
from features.schema import FeatureSchema

_NO_TASK = -1
_NO_SLOT = -1
# A batch never splits a request; one request that is longer than this many batches is split all the same.
_MOST_BATCHES = 4


class EventBuffer:
    """The events of the batch that is being gathered, as columns.

    :param truths: names of the tasks, to pick the simulator's probabilities by.
    """

    def __init__(self, schema: FeatureSchema, truths: tuple[str, ...], settings: BatchSettings) -> None:
        self._schema = schema
        self._truths = truths
        self._settings = settings
        self._clear()

    def _clear(self) -> None:
        self._integers: dict[str, array[int]] = {
            name: array("q")
            for name in (
                "kind",
                "user",
                "item",
                "time_ms",
                "emit",
                "keep",
                "negatives",
                "rank",
                "slot",
                "task",
                "list_id",
            )
        }
        self._attributes = {owner: array("q") for owner in ("item", "user", "context")}
        self._numbers = {owner: array("f") for owner in ("item", "user", "context")}
        self._truth = array("f")
        self._has_truth = False
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
        columns = self._integers
        columns["kind"].append(kind)
        columns["user"].append(user)
        columns["item"].append(item)
        columns["time_ms"].append(event.ts_ms)
        columns["emit"].append(emit)
        columns["keep"].append(keep)
        columns["negatives"].append(negatives)
        columns["rank"].append(rank)
        columns["slot"].append(slot)
        columns["task"].append(task)
        columns["list_id"].append(list_id)
        schema = self._schema
        for owner, reader, attributes in (
            ("item", schema.item, event.item),
            ("user", schema.user, event.user),
            ("context", schema.context, event.context),
        ):
            hashes, numbers = reader(attributes)
            self._attributes[owner].extend(hashes)
            self._numbers[owner].extend(numbers)
        truth = event.truth
        if truth:
            self._has_truth = True
            self._truth.extend([truth.get(name, nan) for name in self._truths])
        else:
            self._truth.extend([nan] * len(self._truths))
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
        same_request = request is not None and request == self.last_request
        return full and (not same_request or n_rows >= _MOST_BATCHES * settings.max_rows)

    def take(self) -> tuple[EventColumns, Int64s, Int64s, Int64s, Float32s | None]:
        """The columns, then per event slot, task and list id, then the truths (or None); the buffer is empty again."""
        integers = {name: np.array(column, np.int64) for name, column in self._integers.items()}
        n_events = self.n_events
        schema = self._schema
        readers = {"item": schema.item, "user": schema.user, "context": schema.context}
        attributes, numbers = {}, {}
        for owner, reader in readers.items():
            hashes, values = np.array(self._attributes[owner], np.int64), np.array(self._numbers[owner], np.float32)
            attributes[owner] = hashes.reshape(n_events, len(reader.categorical))
            numbers[owner] = values.reshape(n_events, len(reader.numeric))
        truth = np.array(self._truth, np.float32).reshape(n_events, len(self._truths)) if self._has_truth else None
        columns = EventColumns(
            kind=integers["kind"],
            user=integers["user"],
            item=integers["item"],
            time_ms=integers["time_ms"],
            emit=integers["emit"],
            keep=integers["keep"],
            negatives=integers["negatives"],
            rank=integers["rank"],
            item_attributes=attributes["item"],
            item_numbers=numbers["item"],
            user_attributes=attributes["user"],
            user_numbers=numbers["user"],
            context_attributes=attributes["context"],
            context_numbers=numbers["context"],
        )
        self._clear()
        return columns, integers["slot"], integers["task"], integers["list_id"], truth
