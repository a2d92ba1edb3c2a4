"""Ids and attribute values as 64-bit hashes, the field's name hashed in, so that fields never collide on purpose.

With n distinct values the chance of any collision is about n² / 2⁶⁵: 3·10⁻⁸ at a million (ALGORITHMS §5).
"""

import xxhash

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


class FieldHasher:
    """:func:`hash_id` for one field, remembering the values it has met.

    :param capacity: values remembered; at the limit all are forgotten, which costs time and changes nothing.
    """

    __slots__ = ("_capacity", "_field", "_known")

    def __init__(self, field: str, capacity: int = 200_000) -> None:
        self._field = field
        self._capacity = capacity
        self._known: dict[object, int] = {}

    def __call__(self, value: object) -> int:
        """The hash of a value."""
        if isinstance(value, list):  # no dictionary's key
            return hash_id(self._field, value)
        found = self._known.get(value)
        if found is None:
            found = hash_id(self._field, value)
            if len(self._known) >= self._capacity:
                self._known.clear()
            self._known[value] = found
        return found
