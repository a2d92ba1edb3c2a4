"""The features of a model that was given more tasks or fields: arrays of fewer, spread to the places of more.

Columns go by name. What is new is unknown to everything that was there before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.schema import AttributeReader, FeatureSchema

Places = NDArray[np.intp]


def places(old: Sequence[object], new: Sequence[object]) -> Places:
    """Where each of the old names stands among the new ones.

    :raises ValueError: one is not there any more.
    """
    at = {name: place for place, name in enumerate(new)}
    if gone := [str(name) for name in old if name not in at]:
        raise ValueError(f"what is learned has no place any more for {', '.join(gone)}; put new fields behind the old")
    return np.array([at[name] for name in old], np.intp)


def spread(array: NDArray[Any], to: Places, size: int, axis: int, fill: Any = 0) -> NDArray[Any]:
    """A copy whose ``axis`` is of this size, what was there at its new places, the rest ``fill``.

    :param fill: a number; or one for each place.
    """
    shape = [*array.shape]
    shape[axis] = size
    made = np.empty(shape, array.dtype)
    across = [1] * array.ndim
    across[axis] = -1
    made[...] = np.reshape(fill, across)
    index: list[Any] = [slice(None)] * array.ndim
    index[axis] = to
    made[tuple(index)] = array
    return made


class Growth:
    """From an old schema's columns to a new one's, which has them all.

    :raises ValueError: it has not.
    """

    def __init__(self, old: FeatureSchema, new: FeatureSchema) -> None:
        self.old, self.new = old, new
        self.tasks = places(old.layout.tasks, new.layout.tasks)
        self.kinds = places(old.layout.event_types, new.layout.event_types)
        self.ids = places(_slots(old), _slots(new))
        self.dense = places(old.layout.dense, new.layout.dense)

    def of_tasks(self, array: NDArray[Any], axis: int, fill: Any = 0) -> NDArray[Any]:
        """An array with a place for each task."""
        return spread(array, self.tasks, len(self.new.layout.tasks), axis, fill)

    def of_kinds(self, array: NDArray[Any], axis: int) -> NDArray[Any]:
        """An array with a place for each event type."""
        return spread(array, self.kinds, len(self.new.layout.event_types), axis)

    def of_ids(self, array: NDArray[Any]) -> NDArray[Any]:
        """Encoded ids, shape ``[N, C]``: what is new was not given."""
        return spread(array, self.ids, self.new.layout.n_ids, 1, self.new.missing)

    def of_dense(self, array: NDArray[Any]) -> NDArray[Any]:
        """Encoded dense features, shape ``[N, D]``: a new number was not given, a new counter counted nothing."""
        unknown = [float(name.endswith(" missing")) for name in self.new.layout.dense]
        return spread(array, self.dense, len(unknown), 1, unknown)

    def of_attributes(self, array: NDArray[Any], owner: str) -> NDArray[Any]:
        """An owner's hashes as read, shape ``[N, ids]``."""
        new = _columns(getattr(self.new, owner))
        return spread(array, places(_columns(getattr(self.old, owner)), new), len(new), 1)

    def of_numbers(self, array: NDArray[Any], owner: str) -> NDArray[Any]:
        """An owner's numbers as read, shape ``[N, numeric]``."""
        new = _names(getattr(self.new, owner).numeric)
        return spread(array, places(_names(getattr(self.old, owner).numeric), new), len(new), 1, np.nan)


def grow_profiles(arrays: Mapping[str, NDArray[Any]], growth: Growth) -> dict[str, NDArray[Any]]:
    """What :func:`features.profiles.save_profiles` gave under the old schema, as under the new one."""
    old, new = growth.old, growth.new
    numbers, new_numbers = (
        _names([field for reader in (one.item, one.user, one.context) for field in reader.numeric])
        for one in (old, new)
    )
    grown = dict(arrays)
    for owner in ("item", "user"):
        grown[f"{owner}s.attributes"] = growth.of_attributes(arrays[f"{owner}s.attributes"], owner)
        grown[f"{owner}s.numbers"] = growth.of_numbers(arrays[f"{owner}s.numbers"], owner)
    for name in ("history", "pairs.counts", "values.counts"):
        grown[name] = growth.of_kinds(arrays[name], 1)
    kept, newly_kept = _kept(old), _kept(new)
    grown["trail"] = spread(arrays["trail"], places(kept, newly_kept), len(newly_kept), 1)
    grown["moments"] = spread(arrays["moments"], places(numbers, new_numbers), len(new_numbers), 0)
    return grown


def _slots(schema: FeatureSchema) -> list[tuple[str, int]]:
    layout = schema.layout
    return [(name, slot) for name, n_slots in zip(layout.fields, layout.slots, strict=True) for slot in range(n_slots)]


def _columns(reader: AttributeReader) -> list[tuple[str, int]]:
    return [(field.name, slot) for field in (*reader.categorical, *reader.several) for slot in range(field.n_ids)]


def _kept(schema: FeatureSchema) -> list[tuple[str, int]]:
    return [(name, m) for name, n in zip(schema.followed, schema.trails, strict=True) for m in range(n)]


def _names(fields: Sequence[Any]) -> list[str]:
    return [field.name for field in fields]
