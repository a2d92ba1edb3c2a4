"""From a record's bytes to events: canonical JSON, or a foreign log read by a mapping (DESIGN §2)."""

import csv
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from contracts.events import Event
from contracts.records import BadRecordError, Record
from contracts.settings import Settings
from streamer.mapping import Mapping
from streamer.reasons import explain

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_MAX_FLOAT = 1.7e308
_LONG_NUMBER = re.compile(rb"[0-9]{309}").search
_LONG_NUMBER_BYTES = 380
"""A whole number beyond a float's range has 309 digits: a shorter record cannot hold an event with one."""


class Decoded(NamedTuple):
    """What N records gave."""

    events: list[Event]
    places: list[int]
    """Of each event, the place of its record."""
    rejected: list[tuple[int, BadRecordError]]
    """Place and error of each record that could not become events."""


class EventDecoder:
    """Reads records; holds no state, so that a record decodes to the same events whenever it is read.

    :param mapping: how a foreign record is read; None: canonical JSON.
    :param clock_ms: the wall clock, for records absurdly far in the future.
    """

    def __init__(self, settings: Settings, mapping: Mapping | None, clock_ms: Callable[[], int]) -> None:
        self._types = frozenset(settings.event_types)
        self._ignored = frozenset(settings.events.ignore)
        self._max_bytes = settings.events.max_bytes
        self._max_future_ms = settings.events.max_future_ms
        self._mapping = mapping
        self._clock_ms = clock_ms
        self._decode_event = msgspec.json.Decoder(Event).decode
        self._decode_row = msgspec.json.Decoder(dict[str, Any]).decode

    def decode(self, record: Record) -> list[Event]:
        """The record's events: one, several (a flag of the row is an event of its own), or none (an ignored type).

        :raises BadRecordError: the record cannot become events; the detail names path or column, and the value.
        """
        return self._decode(record, self._clock_ms() + self._max_future_ms)

    def decode_all(self, records: Sequence[Record]) -> "Decoded":
        """Many records at once; the bad ones are told with their places."""
        latest_ms = self._clock_ms() + self._max_future_ms
        decoded = Decoded([], [], [])
        for place, record in enumerate(records):
            if (event := self._usual(record.value, latest_ms)) is not None:
                decoded.events.append(event)
                decoded.places.append(place)
                continue
            try:
                events = self._decode(record, latest_ms)
            except BadRecordError as error:
                decoded.rejected.append((place, error))
                continue
            decoded.events.extend(events)
            decoded.places.extend([place] * len(events))
        return decoded

    def _usual(self, value: bytes, latest_ms: int) -> Event | None:
        """The event of a canonical record that nothing is wrong with; None: look closely."""
        if self._mapping is not None or not value or len(value) > self._max_bytes:
            return None
        try:
            event = self._decode_event(value)
        except (ValueError, RecursionError):
            return None
        if event.ts_ms > latest_ms or event.type not in self._types:
            return None
        return None if len(value) > _LONG_NUMBER_BYTES and _LONG_NUMBER(value) else event

    def _decode(self, record: Record, latest_ms: int) -> list[Event]:
        value = record.value
        if not value:
            raise BadRecordError("not_json", "The record is empty (a tombstone); expected a JSON object.")
        if len(value) > self._max_bytes:
            raise BadRecordError(
                "too_large", f"The record has {len(value)} bytes; `events.max_bytes` allows {self._max_bytes}."
            )
        if self._mapping is not None:
            return self._map(self._mapping, record, latest_ms)
        try:
            event = self._decode_event(value)
        except (ValueError, RecursionError) as error:
            raise explain(error) from error
        if event.ts_ms > latest_ms:
            raise self._future(event)
        if event.type not in self._types:
            return self._not_declared(event.type)
        if len(value) > _LONG_NUMBER_BYTES and _LONG_NUMBER(value):
            _require_float_range(event)
        return [event]

    def _map(self, mapping: Mapping, record: Record, latest_ms: int) -> list[Event]:
        row = self._row(mapping, record.value)
        events = mapping.events(row, f"{record.topic}-{record.partition}-{record.offset}")
        for event in events:
            if event.ts_ms > latest_ms:
                raise self._future(event)
        if events and events[0].type not in self._types:
            return self._not_declared(events[0].type)
        # A flag's event is an extra of its row: where no task asks for it, the row is still good.
        return [event for event in events if event.type in self._types]

    def _row(self, mapping: Mapping, value: bytes) -> dict[str, Any]:
        # A CSV file's rows arrive as JSON objects (the file source reads the header); a topic's as bare lines.
        if mapping.format == "json" or value.startswith(b"{"):
            try:
                return self._decode_row(value)
            except (ValueError, RecursionError) as error:
                raise explain(error) from error
        try:
            cells = next(csv.reader([value.decode()], delimiter=_DELIMITERS[mapping.format], strict=True), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise BadRecordError("mapping", f"Not a line of {mapping.format}: {error}.") from error
        if len(cells) != len(mapping.columns):
            raise BadRecordError(
                "mapping", f"The line has {len(cells)} cells; the mapping names {len(mapping.columns)} `columns`."
            )
        return dict(zip(mapping.columns, cells, strict=True))

    def _future(self, event: Event) -> BadRecordError:
        return BadRecordError(
            "future",
            f"`ts_ms` {event.ts_ms} is more than {self._max_future_ms} ms ahead of the clock; "
            "event time is in milliseconds. `events.max_future` sets how far ahead is allowed.",
        )

    def _not_declared(self, type_: str) -> list[Event]:
        if type_ in self._ignored or "*" in self._ignored:
            return []
        raise BadRecordError(
            "unknown_type",
            f"Event type `{type_[:64]}` belongs to no task; declared are {', '.join(sorted(self._types))}. "
            "Declare it (`[[tasks]]` with `name` or `event`), or list it in `events.ignore`.",
        )


def _require_float_range(event: Event) -> None:
    for owner, attributes in (("context", event.context), ("item", event.item), ("user", event.user)):
        for key, value in attributes.items():
            for number in value if isinstance(value, list) else (value,):
                if type(number) is int and abs(number) > _MAX_FLOAT:
                    raise BadRecordError("non_finite", f"Number out of range - at `$.{owner}.{key}`.")
