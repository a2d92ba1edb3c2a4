"""Fields for a log that nobody declared fields for: the attributes seen in its first events."""

from collections.abc import Iterable
from itertools import islice

from contracts.events import Event
from contracts.settings import FieldSpec

_MAX_FIELDS = 64
_MAX_CODES = 20
"""Whole numbers with no more distinct values than this are labels (a position, a weekday), not quantities."""
_KEPT_VALUES = 1_000


class _Seen:
    """What the values of one attribute were like."""

    def __init__(self) -> None:
        self.values: set[object] = set()
        self.numeric = True
        self.whole = True
        self.several = False

    def add(self, value: object) -> None:
        if isinstance(value, list):
            self.several, value = True, tuple(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        self.numeric = self.numeric and is_number
        self.whole = self.whole and not (isinstance(value, float) and not value.is_integer())
        if len(self.values) < _KEPT_VALUES:
            self.values.add(value)

    def kind(self) -> str:
        if self.several:
            return "multi"
        quantity = self.numeric and (not self.whole or len(self.values) > _MAX_CODES)
        return "numeric" if quantity else "categorical"


def infer_fields(events: Iterable[Event], limit: int = 1_000) -> tuple[FieldSpec, ...]:
    """The fields that the first ``limit`` events suggest, in order of first sight.

    Numbers are numeric when one is not whole or there are more than 20 different ones; all else is categorical.
    An attribute that is ever a list has several values. Left out are attributes that never change, and keys with a dot
    (settings cannot name them).
    """
    seen: dict[str, _Seen] = {}
    for event in islice(events, limit):
        for owner, attributes in (("item", event.item), ("user", event.user), ("context", event.context)):
            for key, value in attributes.items():
                if value is not None and key and "." not in key:
                    seen.setdefault(f"{owner}.{key}", _Seen()).add(value)
    chosen = [(source, look.kind()) for source, look in seen.items() if len(look.values) > 1]
    return tuple(FieldSpec.model_validate({"source": source, "kind": kind}) for source, kind in chosen[:_MAX_FIELDS])


def describe(fields: Iterable[FieldSpec]) -> str:
    """The fields as TOML, to be copied into a settings file."""
    blocks = []
    for field in fields:
        source = field.source.replace("\\", "\\\\").replace('"', '\\"')
        kind = "" if field.kind == "categorical" else f'\nkind = "{field.kind}"'
        blocks.append(f'[[fields]]\nsource = "{source}"{kind}')
    return "\n\n".join(blocks)
