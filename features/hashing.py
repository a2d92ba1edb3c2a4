"""Ids and attribute values as 64-bit hashes, the field's name hashed in, so that fields never collide on purpose.

With n distinct values the chance of any collision is about n² / 2⁶⁵: 3·10⁻⁸ at a million (ALGORITHMS §5).
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

EMPTY = -1
"""A slot of a field of several values that holds none, though the field is given."""
_SIGN = 1 << 63
_WORDS = re.compile(r"\w+").findall
_MODULUS = 1 << 64


def hash_id(field: str, value: object) -> int:
    """A signed 64-bit hash of a value within a field; never 0, which means "none" everywhere.

    The numbers 7 and 7.0 and the text "7" are the same id: logs differ in how they write one. So equal values have
    equal hashes, and whoever remembers hashes by value changes none.
    """
    digest = xxhash.xxh3_64_intdigest(f"{field}\x1f{_text(value)}".encode("utf-8", "surrogatepass"))
    return (digest - _MODULUS if digest >= _SIGN else digest) or 1


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\x1e".join(map(_text, value))
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value)


def missing_id(field: str) -> int:
    """The id of "not given" in a field: a value of its own, with a row of its own."""
    return hash_id(field, "\x00missing")


def hash_ids(field: str, values: Sequence[object]) -> NDArray[np.int64]:
    """:func:`hash_id` of N values that are met once: nothing is remembered. Shape ``[N]``."""
    prefix = f"{field}\x1f".encode()
    texts = [value if type(value) is str else _text(value) for value in values]
    encoded = [prefix + text.encode("utf-8", "surrogatepass") for text in texts]
    hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), np.uint64, len(encoded)).view(np.int64)
    hashes[hashes == 0] = 1
    return hashes


class FieldHasher:
    """:func:`hash_id` for one field, remembering the values it has met; None is 0.

    :param capacity: values remembered; at the limit all are forgotten, which costs time and changes nothing.
    """

    __slots__ = ("_known",)

    def __init__(self, field: str, capacity: int = 200_000) -> None:
        self._known = _Known(field, capacity)

    def __call__(self, value: object) -> int:
        """The hash of a value."""
        if isinstance(value, list):  # no dictionary's key
            return hash_id(self._known.field, value)
        return self._known[value]

    def column(self, values: Sequence[object]) -> NDArray[np.int64]:
        """The hashes of N values, shape ``[N]``."""
        try:
            return np.fromiter(map(self._known.__getitem__, values), np.int64, len(values))
        except TypeError:  # a list among them
            return np.fromiter(map(self, values), np.int64, len(values))


class BagHasher:
    """The hashes of a field of several values, its distinct ones in order, in a fixed number of slots.

    :param parts: from text to its values.
    :param n_slots: values that count; fewer leave :data:`EMPTY` slots behind.
    :param capacity: as for :class:`FieldHasher`.
    """

    def __init__(self, field: str, parts: Callable[[str], Sequence[str]], n_slots: int, capacity: int = 50_000) -> None:
        self._one = FieldHasher(field)
        self._parts = parts
        self._unsaid = (0,) * n_slots
        self._none = (missing_id(field), *(EMPTY,) * (n_slots - 1))
        self._capacity = capacity
        self._known: dict[object, tuple[int, ...]] = {}

    def __call__(self, value: object) -> tuple[int, ...]:
        """Zeros where the event does not say (None); the id of "not given" first where it says: none."""
        if value is None:
            return self._unsaid
        key = tuple(value) if isinstance(value, list) else value
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= self._capacity:
                self._known.clear()
            found = self._known[key] = self._hashes(value)
        return found

    def _hashes(self, value: object) -> tuple[int, ...]:
        n_slots = len(self._unsaid)
        values = value if isinstance(value, list) else [value]
        parts = [part for one in values if one is not None for part in self._split(one)]
        hashes = [self._one(part) for part in dict.fromkeys(map(_text, parts))][:n_slots]
        return (*hashes, *(EMPTY,) * (n_slots - len(hashes))) if hashes else self._none

    def _split(self, value: object) -> Sequence[object]:
        return self._parts(value) if isinstance(value, str) else [value]


def words(text: str) -> list[str]:
    """Its words, in small letters."""
    return _WORDS(text.casefold())


def labels(separator: str) -> Callable[[str], list[str]]:
    """A function of a text: the labels between its separators."""
    return lambda text: [label for part in text.split(separator) if (label := part.strip())]


class _Known(dict[object, int]):
    __slots__ = ("capacity", "field")

    def __init__(self, field: str, capacity: int) -> None:
        super().__init__()
        self.field, self.capacity = field, capacity

    def __missing__(self, value: object) -> int:
        found = 0 if value is None else hash_id(self.field, value)
        if len(self) >= self.capacity:
            self.clear()
        self[value] = found
        return found
