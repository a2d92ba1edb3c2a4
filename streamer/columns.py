"""One column of a foreign log: where a value is found, and how it is read."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from contracts.records import BadRecordError
from contracts.settings import DurationMs

Row = dict[str, Any]
Read = Callable[[Row], Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNIT_NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_MS_NS = 1_000_000
_MAX_TIME = 10**24


class Part(BaseModel):
    """A table of a mapping file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(Part):
    """Where a value comes from: exactly one of the five. In TOML plain text is a column and a list is a join."""

    column: str = ""
    """A column's name, or a dotted path into nested JSON."""
    join: tuple[str, ...] = ()
    """Several columns, their values joined by ``|``: a key made of parts."""
    any: tuple[str, ...] = ()
    """Names that the column goes by in different editions of a log: the first that is there."""
    sum: str = ""
    """A pattern of names (`affinity_*`): the sum of the numbers in all columns that fit it."""
    constant: str | int | float | bool | None = None
    kind: Literal["as_is", "text", "numeric"] = "as_is"
    """Of an attribute: ``numeric`` reads numbers out of text, ``text`` makes labels of numbers."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: object) -> object:
        if isinstance(value, str):
            return {"column": value}
        return {"join": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        origins = (self.column, self.join, self.any, self.sum, self.constant is not None)
        if len([origin for origin in origins if origin]) != 1:
            raise ValueError("name exactly one of `column`, `join`, `any`, `sum` and `constant`")
        return self

    def __str__(self) -> str:
        return (
            self.column or " + ".join(self.join) or " or ".join(self.any) or self.sum or f"constant {self.constant!r}"
        )

    def reader(self) -> Read:
        """A function of a row: the value, None where it is missing or empty."""
        if self.constant is not None:
            return lambda _row: self.constant
        if self.join:
            return _joined([path_reader(name) for name in self.join])
        if self.any:
            return _first([path_reader(name) for name in self.any])
        if self.sum:
            return self._sum
        return path_reader(self.column)

    def _sum(self, row: Row) -> float | None:
        found = [numeric(self, value) for name, value in row.items() if value != "" and fnmatchcase(name, self.sum)]
        numbers = [number for number in found if number is not None]
        return math.fsum(numbers) if numbers else None


class Time(Column):
    """Event time: a number in a unit, or text in a format."""

    unit: Literal["s", "ms", "us", "ns"] | None = None
    format: str = ""
    """``iso``, or a ``strptime`` pattern such as ``%Y-%m-%d %H:%M:%S``."""
    timezone: str = "UTC"
    """Of text that names none."""

    @model_validator(mode="after")
    def _number_or_text(self) -> Self:
        if (self.unit is None) == (not self.format):
            raise ValueError("give `unit` (s, ms, us, ns) for numbers, or `format` (iso, a strptime pattern) for text")
        return self

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError('expected a zone of the IANA database, such as "Asia/Shanghai"') from error
        return name

    def parser(self) -> Callable[[object], int]:
        """A function from the column's value to milliseconds since the epoch; ValueError where it is no such time."""
        if self.unit is not None:
            unit_ns = _UNIT_NS[self.unit]
            return lambda value: _number_ms(value, unit_ns)
        zone, pattern = ZoneInfo(self.timezone), self.format

        def parse_text(value: object) -> int:
            text = str(value)
            found = datetime.fromisoformat(text) if pattern == "iso" else datetime.strptime(text, pattern)  # noqa: DTZ007 (next line)
            return ((found if found.tzinfo else found.replace(tzinfo=zone)) - _EPOCH) // timedelta(milliseconds=1)

        return parse_text


class Flag(Part):
    """A column whose value makes a second event of the row: a clicked impression, a rating that is a like."""

    column: Column
    type: str = Field(min_length=1, max_length=64)
    values: tuple[str, ...] = ()
    """The flag is set where the column, as text, is one of these…"""
    min: float | None = None
    """…or is a number of at least this."""
    delay_ms: DurationMs = Field(default=0, alias="delay")
    """How long after the row's own event."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if bool(self.values) == (self.min is not None):
            raise ValueError('give either `values` (such as ["1"]) or `min`')
        return self

    def tester(self) -> Callable[[Row], bool]:
        """A function of a row: whether the flag is set. A missing value sets no flag."""
        read, values, least = self.column.reader(), frozenset(self.values), self.min
        if least is None:
            return lambda row: text_of(read(row)) in values

        def is_enough(row: Row) -> bool:
            number = numeric(self.column, read(row))
            return number is not None and number >= least

        return is_enough


def path_reader(name: str) -> Read:
    """A reader of a column, or of a dotted path where no column has that very name."""
    steps = name.split(".")

    def read(row: Row) -> Any:
        found: Any = row.get(name)
        if found is None and len(steps) > 1:
            found = row
            for step in steps:
                found = found.get(step) if isinstance(found, dict) else None
        return None if found == "" else found

    return read


def numeric(column: Column, value: object) -> float | int | None:
    """A number, read out of text where need be; None for a missing one (empty, ``nan``).

    :raises BadRecordError: no number, or not a finite one.
    """
    if value is None or isinstance(value, int):
        return value
    try:
        number = float(value)  # type: ignore[arg-type]  # anything else raises, and is told below
    except (TypeError, ValueError) as error:
        raise BadRecordError("mapping", f"Column `{column}`: found {shown(value)}, expected a number.") from error
    if math.isinf(number):
        raise BadRecordError("non_finite", f"Column `{column}`: found {shown(value)}; a number must be finite.")
    return None if math.isnan(number) else number


def text_of(value: object) -> str:
    """The value as a CSV file would hold it."""
    return str(int(value)) if isinstance(value, bool | float) and value == int(value) else str(value)


def shown(value: object) -> str:
    """The value for an error message, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _joined(readers: list[Read]) -> Read:
    def read(row: Row) -> str | None:
        parts = [reader(row) for reader in readers]
        if all(part is None for part in parts):
            return None
        return "|".join("" if part is None else str(part) for part in parts)

    return read


def _first(readers: list[Read]) -> Read:
    def read(row: Row) -> Any:
        return next((found for reader in readers if (found := reader(row)) is not None), None)

    return read


def _number_ms(value: object, unit_ns: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError("not a number")
    if (isinstance(value, str) and not value.lstrip("-").isdecimal()) or isinstance(value, float):
        exact = Decimal(str(value))
        if not abs(exact) < _MAX_TIME:
            raise ValueError("not a time")
        return int(exact * unit_ns) // _MS_NS
    return int(value) * unit_ns // _MS_NS
