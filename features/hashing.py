"""Ids and attribute values as 64-bit hashes, the field's name hashed in, so that fields never collide on purpose.

With n distinct values the chance of any collision is about n² / 2⁶⁵: 3·10⁻⁸ at a million (ALGORITHMS §5).
"""

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

_SIGN = 1 << 63
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
