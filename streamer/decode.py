"""From a record's bytes to events: canonical JSON, or a foreign log read by a mapping (DESIGN §2)."""

import csv
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from contracts.events import Event
from contracts.records import BadRecordError, Record
from contracts.settings import Settings
from features.schema import OWNERS
from streamer.declared import Declared, attributes_in
from streamer.mapping import Mapping
from streamer.reasons import explain

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_LONG_NUMBER = re.compile(rb"[0-9]{309}").search
_LONG_NUMBER_BYTES = 380
"""A whole number beyond a float's range has 309 digits: a shorter record cannot hold an event with one."""


class Decoded(NamedTuple):
    """What N records gave."""

    events: list[msgspec.Struct]
    """As :class:`streamer.declared.Declared` has them."""
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
        self._usual_bytes = min(self._max_bytes, _LONG_NUMBER_BYTES)
        self._max_future_ms = settings.events.max_future_ms
        self._mapping = mapping
        self._clock_ms = clock_ms
        self._declared = Declared(settings)
        self._decode_event = msgspec.json.Decoder(Event).decode
        self._decode_row = msgspec.json.Decoder(dict[str, Any]).decode

    def decode(self, record: Record) -> list[Event]:
        """The record's events: one, several (a flag of the row is an event of its own), or none (an ignored type).

        With all their attributes, but for those which the settings do not declare and which cannot be attributes.

        :raises BadRecordError: the record cannot become events; the detail names path or column, and the value.
        """
        latest_ms = self._clock_ms() + self._max_future_ms
        if self._mapping is not None:
            return self._map(self._mapping, record, latest_ms)
        return [self._whole(record.value, event) for event in self._read(record, latest_ms)]

    def decode_all(self, records: Sequence[Record]) -> "Decoded":
        """Many records at once, as far as their attributes are declared; the bad ones are told with their places."""
        latest_ms = self._clock_ms() + self._max_future_ms
        events: list[Any] = []
        places: list[int] = []
        rejected: list[tuple[int, BadRecordError]] = []
        usual = None if self._mapping is not None else self._usual
        for place, record in enumerate(records):
            if usual is not None and (event := usual(record[4], latest_ms)) is not None:
                events.append(event)
                places.append(place)
                continue
            try:
                found = self._read(record, latest_ms)
            except BadRecordError as error:
                rejected.append((place, error))
                continue
            events.extend(found)
            places.extend([place] * len(found))
        return Decoded(events, places, rejected)

    def _usual(self, value: bytes, latest_ms: int) -> Any:
        """The event of a canonical record that nothing is wrong with; None: look closely."""
        if not value or (len(value) > self._usual_bytes and self._is_odd(value)):
            return None
        try:
            event: Any = self._declared.decode(value)
        except (ValueError, RecursionError):
            return None
        return event if event.ts_ms <= latest_ms and event.type in self._types else None

    def _is_odd(self, value: bytes) -> bool:
        return len(value) > self._max_bytes or _LONG_NUMBER(value) is not None

    def _read(self, record: Record, latest_ms: int) -> Sequence[Any]:
        """The record's events with their declared attributes."""
        if self._mapping is not None:
            return [self._declared.of(event) for event in self._map(self._mapping, record, latest_ms)]
        value = self._bounded(record.value)
        try:
            event: Any = self._declared.decode(value)
        except (ValueError, RecursionError) as error:
            raise explain(error) from error
        if event.ts_ms > latest_ms:
            raise self._future(event)
        if event.type not in self._types:
            return self._not_declared(event.type)
        if len(value) > _LONG_NUMBER_BYTES and _LONG_NUMBER(value):
            self._declared.require_float_range(event)
        return [event]

    def _bounded(self, value: bytes) -> bytes:
        if not value:
            raise BadRecordError("not_json", "The record is empty (a tombstone); expected a JSON object.")
        if len(value) > self._max_bytes:
            raise BadRecordError(
                "too_large", f"The record has {len(value)} bytes; `events.max_bytes` allows {self._max_bytes}."
            )
        return value

    def _whole(self, value: bytes, declared: Any) -> Event:
        """An event that was read as declared, with its other attributes, as far as they can be ones."""
        try:
            return self._decode_event(value)
        except (ValueError, RecursionError):
            pass
        try:
            row = self._decode_row(value)
        except (ValueError, RecursionError):
            row = {}  # what was passed over cannot be read at all
        return self._declared.event(declared, {owner: attributes_in(row.get(owner)) for owner in OWNERS})

    def _map(self, mapping: Mapping, record: Record, latest_ms: int) -> list[Event]:
        row = self._row(mapping, self._bounded(record.value))
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

    def _future(self, event: Any) -> BadRecordError:
        return BadRecordError(
            "future",
            f"`ts_ms` {event.ts_ms} is more than {self._max_future_ms} ms ahead of the clock; "
            "event time is in milliseconds. `events.max_future` sets how far ahead is allowed.",
        )

    def _not_declared(self, type_: str) -> list[Any]:
        if type_ in self._ignored or "*" in self._ignored:
            return []
        raise BadRecordError(
            "unknown_type",
            f"Event type `{type_[:64]}` belongs to no task; declared are {', '.join(sorted(self._types))}. "
            "Declare it (`[[tasks]]` with `name` or `event`), or list it in `events.ignore`.",
        )
