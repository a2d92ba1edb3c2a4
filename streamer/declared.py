"""What is decoded of an event: its own fields, and the attributes that the settings declare. The rest is passed over.

A record of a topic carries what its producers want; the model reads a few attributes of it. Decoding into a type that
has just those costs half of decoding into dictionaries, and as columns they are two calls of C an event.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import astuple, fields

from contracts.events import MAX_ATTRIBUTES, Attribute, Attributes, Event
from contracts.records import BadRecordError
from contracts.settings import Settings
from features.schema import OWNERS, keys_of

_MAX_FLOAT = 1.7e308
_NO_FIELD = re.compile(r'["\\\x00-\x1f]').search
"""What msgspec takes in no field's name."""

Columns = list[tuple[Any, ...]]
"""N structs by field: as many tuples as they have fields, each of length N."""

FIELDS = tuple(field.name for field in fields(Event))
"""Those of :class:`Event`, but each owner's attributes are a struct."""


class Declared:
    """Events with the declared attributes, by owner in the order of :func:`features.schema.keys_of`."""

    decode: Callable[[bytes], Any]
    """From JSON; raises msgspec's errors, and RecursionError."""

    def __init__(self, settings: Settings) -> None:
        self._keys = {owner: keys_of(settings, owner) for owner in OWNERS}
        self._owners = {owner: _attributes(owner, keys) for owner, keys in self._keys.items()}
        parts: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        for field in fields(Event):
            if (owner := self._owners.get(field.name)) is not None:
                parts.append((field.name, owner, owner()))
            elif field.required:
                parts.append((field.name, field.type))
            else:
                parts.append((field.name, field.type, field.default))
        self._type = msgspec.defstruct("DeclaredEvent", parts, kw_only=True, gc=False)
        self.decode = msgspec.json.Decoder(self._type).decode
        # Then an attribute that is not declared is read, too, and has to be one.
        if any(map(_NO_FIELD, itertools.chain(*self._keys.values()))):
            decode_event = msgspec.json.Decoder(Event).decode
            self.decode = lambda value: self.of(decode_event(value))

    def of(self, event: Event) -> msgspec.Struct:
        """The same of an event that was read by a mapping."""
        owners = {
            owner: made(*map(getattr(event, owner).get, self._keys[owner])) for owner, made in self._owners.items()
        }
        return self._type(**{name: owners.get(name, getattr(event, name)) for name in FIELDS})

    def event(self, declared: Any, others: Mapping[str, Mapping[str, Any]]) -> Event:
        """The inverse of :meth:`of`, with attributes that are not declared, by owner."""
        given = {
            owner: dict(zip(keys, astuple(getattr(declared, owner)), strict=True)) for owner, keys in self._keys.items()
        }
        owners = {
            owner: {**others[owner], **{key: value for key, value in found.items() if value is not None}}
            for owner, found in given.items()
        }
        return Event(**{name: owners.get(name, getattr(declared, name)) for name in FIELDS})

    def require_float_range(self, event: Any) -> None:
        """Refuse a whole number that no float can hold.

        :raises BadRecordError: it names the attribute.
        """
        for owner, keys in self._keys.items():
            for key, value in zip(keys, astuple(getattr(event, owner)), strict=True):
                for number in value if isinstance(value, list) else (value,):
                    if type(number) is int and abs(number) > _MAX_FLOAT:
                        raise BadRecordError("non_finite", f"Number out of range - at `$.{owner}.{key}`.")


def attributes_in(found: object) -> dict[str, Any]:
    """Of a map in JSON what can be attributes."""
    fitting = {key: value for key, value in found.items() if _fits(key, value)} if isinstance(found, dict) else {}
    return dict(itertools.islice(fitting.items(), MAX_ATTRIBUTES))


def _fits(key: str, value: object) -> bool:
    try:
        msgspec.convert({key: value}, Attributes)
    except msgspec.ValidationError:
        return False
    return True


def by_field(structs: Sequence[msgspec.Struct], n_fields: int) -> Columns:
    """Structs of ``n_fields`` fields as columns."""
    return list(zip(*map(astuple, structs), strict=True)) if structs else [()] * n_fields


def _attributes(owner: str, keys: Sequence[str]) -> type[msgspec.Struct]:
    # A key need not be a name in Python: the fields are numbered.
    renamed = {f"of_{place}": key for place, key in enumerate(keys) if not _NO_FIELD(key)}
    parts = [(f"of_{place}", Attribute, None) for place, _ in enumerate(keys)]
    return msgspec.defstruct(owner, parts, frozen=True, gc=False, rename=renamed)
