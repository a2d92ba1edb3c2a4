"""Mapping files: how the columns or JSON paths of a foreign log become events (DESIGN §2)."""

import importlib.resources
import math
import tomllib
from functools import cached_property
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from pydantic import Field, ValidationError, field_validator, model_validator

from contracts.events import Event
from contracts.records import BadRecordError
from contracts.settings import Settings, SettingsError
from streamer.columns import Column, Flag, Part, Row, Time, numeric, shown
from streamer.reasons import explain


class Mapping(Part):
    """How one row of a foreign log becomes events; read from TOML by :func:`load_mapping`."""

    format: Literal["json", "csv", "tsv"] = "json"
    """Of a record's value in Kafka. A file's rows are known by the file's own header instead."""
    columns: tuple[str, ...] = ()
    """What the cells of a CSV or TSV record are."""
    type: Column
    types: dict[str, str] = Field(default={})
    """The log's name of a type → ours. Empty: the log's names are ours."""
    ignore: tuple[str, ...] = ()
    """The log's types that are left out without being bad records."""
    user_id: Column
    item_id: Column
    time: Time
    event_id: Column | None = None
    """None: derived from topic, partition and offset, so unique and stable."""
    request_id: Column | None = None
    """None: where the mapping has flags, one is derived that ties their events to the row's."""
    value: Column | None = None
    item: dict[str, Column] = Field(default={})
    user: dict[str, Column] = Field(default={})
    context: dict[str, Column] = Field(default={})
    flags: tuple[Flag, ...] = ()
    settings: dict[str, Any] = Field(default={})
    """Settings that suit the log, used where the user gives no settings file."""

    @model_validator(mode="after")
    def _columns_where_lines(self) -> Self:
        if (self.format == "json") == bool(self.columns):
            raise ValueError('`columns` go with `format = "csv"` or "tsv", and these need them')
        return self

    @field_validator("settings")
    @classmethod
    def _settings_are_valid(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            Settings(**value)
        except ValidationError as error:
            raise ValueError("; ".join(_lines(error))) from error
        return value

    @cached_property
    def _plan(self) -> "_Plan":
        return _Plan(self)

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        # The plan is of closures, which do not cross to another process; it is made anew there.
        return {**state, "__dict__": {name: value for name, value in state["__dict__"].items() if name != "_plan"}}

    def events(self, row: Row, place: str = "row") -> list[Event]:
        """The row's events: its own, then one per flag that is set; none for an ignored type.

        :param place: where the row stands in the log; ids that the log lacks are derived from it.
        :raises BadRecordError: a column is missing or cannot be read; the detail names it.
        """
        return self._plan.events(row, place)


class _Plan:
    """A mapping with its names resolved: built once, run per row."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._type, self._time = mapping.type.reader(), mapping.time.reader()
        self._parse_ms = mapping.time.parser()
        ids = {name: getattr(mapping, name) for name in ("user_id", "item_id", "event_id", "request_id")}
        self._ids = [(name, column, column.reader()) for name, column in ids.items() if column is not None]
        self._value = (mapping.value, mapping.value.reader()) if mapping.value else None
        self._owners = [
            (owner, [(key, column, column.reader()) for key, column in columns.items()])
            for owner, columns in (("item", mapping.item), ("user", mapping.user), ("context", mapping.context))
            if columns
        ]
        self._flags = [(flag, flag.tester()) for flag in mapping.flags]

    def events(self, row: Row, place: str) -> list[Event]:
        type_ = self._event_type(row)
        if type_ is None:
            return []
        fields: dict[str, Any] = {"event_id": place, "type": type_, "ts_ms": self._ts_ms(row)}
        if self._flags:
            fields["request_id"] = place
        for name, column, read in self._ids:
            found = read(row)
            if found is None:
                raise _missing(name, column, row)
            fields[name] = str(found) if name == "request_id" else _id(found)
        if self._value is not None:
            column, read = self._value
            fields["value"] = numeric(column, read(row))
        for owner, columns in self._owners:
            fields[owner] = {
                key: value for key, column, read in columns if (value := _attribute(column, read(row))) is not None
            }
        events = [_event(fields)]
        for flag, is_set in self._flags:
            if is_set(row):
                event_id, ts_ms = f"{fields['event_id']}-{flag.type}", fields["ts_ms"] + flag.delay_ms
                events.append(_event({**fields, "event_id": event_id, "type": flag.type, "ts_ms": ts_ms}))
        return events

    def _event_type(self, row: Row) -> str | None:
        found = self._type(row)
        if found is None:
            raise _missing("type", self._mapping.type, row)
        name = str(found)
        if name in self._mapping.ignore:
            return None
        if not self._mapping.types:
            return name
        if name not in self._mapping.types:
            known = ", ".join([*self._mapping.types, *self._mapping.ignore])
            raise BadRecordError(
                "unknown_type",
                f"Column `{self._mapping.type}`: found {shown(name)}; the mapping knows {known}. "
                "Add it under `types`, or under `ignore`.",
            )
        return self._mapping.types[name]

    def _ts_ms(self, row: Row) -> int:
        time, found = self._mapping.time, self._time(row)
        if found is None:
            raise _missing("time", time, row)
        try:
            return self._parse_ms(found)
        except (TypeError, ValueError, ArithmeticError) as error:
            expected = f"a number of {time.unit}" if time.unit else f"text in the format {time.format}"
            raise BadRecordError("mapping", f"Column `{time}`: found {shown(found)}, expected {expected}.") from error


def load_mapping(name_or_path: str) -> Mapping:
    """A ready mapping by its name (`taobao`), or one from a TOML file.

    :raises SettingsError: no such mapping, or a value breaks a rule; one line per error, with file and path.
    """
    source = _ready().get(name_or_path) or Path(name_or_path)
    try:
        content = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(ready_mappings())
        raise SettingsError(f"{name_or_path}: no such mapping; give a TOML file, or one of {known}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name_or_path}: not TOML: {error}") from error
    try:
        return Mapping(**content)
    except ValidationError as error:
        raise SettingsError("\n".join(f"{name_or_path}: {line}" for line in _lines(error))) from error


def ready_mappings() -> list[str]:
    """The names of the mappings that come with the package."""
    return sorted(_ready())


def _ready() -> dict[str, Traversable]:
    folder = importlib.resources.files("streamer") / "mappings"
    return {path.name.removesuffix(".toml"): path for path in folder.iterdir() if path.name.endswith(".toml")}


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        location = ".".join(str(part) for part in item["loc"]) or "mapping"
        found = "" if item["type"] in {"missing", "value_error"} else f" (found {shown(item['input'])})"
        lines.append(f"{location}: {item['msg'].removeprefix('Value error, ')}{found}")
    return lines


def _event(fields: dict[str, Any]) -> Event:
    try:
        return msgspec.convert(fields, Event)
    except msgspec.ValidationError as error:
        raise explain(error) from error


def _missing(name: str, column: Column, row: Row) -> BadRecordError:
    return BadRecordError(
        "missing_field", f"`{name}`: column `{column}` is missing or empty; the row has {shown(', '.join(row))}."
    )


def _id(value: object) -> object:
    # A whole number that went through a float column, as pandas makes them where a value was missing.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _attribute(column: Column, value: object) -> object:
    if value is None:
        return None
    if column.kind == "numeric":
        return numeric(column, value)
    if column.kind == "text":
        return str(_id(value))
    if isinstance(value, float) and not math.isfinite(value):
        return numeric(column, value)
    return value
