"""What a learner's state takes, by part, and how one cap is divided among the parts.

All by arithmetic on the settings: nothing is allocated to tell. Tests hold the figures to the arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

MIB = 1 << 20
SKETCH_CELLS = 1 << 19
"""Of each of the two rows of the embedding table's admission filter, a byte each."""
WIDE_CELLS = 1 << 16
"""Of the wide part over ids (`learner.wide`): weights, accumulator, and a place to sum up gradients."""
_OPEN_AT_ONCE = 1000
"""Events that the join makes room for before it takes them (`streamer.pipeline`)."""
_MOST_BATCHES = 4
"""Full batches that one may be long (`streamer.batching`)."""
_FEWEST_CELLS = 1 << 11
"""Of a set of event ids, however small."""


def map_bytes(capacity: int) -> int:
    """Bytes of an id → row map (`features.idmap.new_map`): twelve a cell, at most half of the cells in use."""
    return 12 * _twice(capacity)


def array_bytes(state: object) -> int:
    """Bytes of all arrays in a tuple of arrays and tuples."""
    if isinstance(state, tuple):
        return sum(array_bytes(one) for one in state)
    return state.nbytes if isinstance(state, np.ndarray) else 0


def embedding_row_bytes(width: int) -> int:
    """Bytes of a row without its share of the map: weights, accumulator, id, last use, free list, scratch."""
    return 4 * width + 4 + 8 + 8 + 4 + 4


class Sized(Protocol):
    """What of the settings sizes the state; `contracts.settings.Settings`, which checks itself by this module."""

    mode: Any
    tasks: Any
    fields: Any
    events: Any
    features: Any
    batch: Any
    model: Any
    memory: Any

    @property
    def event_types(self) -> tuple[str, ...]:
        """The event types that the stream may hold."""


class Part(NamedTuple):
    """A part of the state, sized by one setting."""

    setting: str
    """``section.name``."""
    one: str
    """What the setting counts; empty: it is a size itself, in MiB."""
    share: float
    """Of a common cap."""
    least: float
    n_bytes: Callable[[Sized, float], int]
    """Bytes, at most, where the setting has this value."""

    @property
    def place(self) -> tuple[str, str]:
        """Section and name."""
        section, _, name = self.setting.partition(".")
        return section, name

    def value(self, settings: Sized) -> float:
        """What the setting is."""
        section, name = self.place
        return float(getattr(getattr(settings, section), name))

    def is_set(self, settings: Sized) -> bool:
        """Whether somebody chose it."""
        section, name = self.place
        return name in getattr(settings, section).model_fields_set


class Planned(NamedTuple):
    """A part with its setting's value and bytes."""

    part: Part
    value: float
    n_bytes: int


def plan(settings: Sized) -> list[Planned]:
    """Each part as the settings have it."""
    return [Planned(part, value, part.n_bytes(settings, value)) for part in PARTS for value in [part.value(settings)]]


def apportion(settings: Sized) -> dict[str, dict[str, Any]]:
    """What the cap (`memory.max_mib`) makes of the parts that nobody chose, by section and name; empty: no cap.

    Each gets its share of what the chosen ones leave; the embedding table, which can use any size, all of the rest.

    :raises ValueError: the parts do not fit.
    """
    cap = round(settings.memory.max_mib * MIB)
    if not cap:
        return {}
    values = {part: part.value(settings) for part in PARTS if part.is_set(settings)}
    n_left = cap - sum(part.n_bytes(settings, value) for part, value in values.items())
    open_parts = [part for part in PARTS if part not in values and part.n_bytes(settings, part.least)]
    budget = n_left / sum(part.share for part in open_parts) if open_parts else 0.0
    table = PARTS[0]
    if (others := [part for part in open_parts if part is not table]) and table in open_parts:
        # The table has a size that does not shrink (filter, wide part): a small cap's other parts share what it leaves.
        least = table.n_bytes(settings, table.least)
        budget = min(budget, (n_left - least) / sum(part.share for part in others))
    for part in reversed(open_parts):  # the embedding table last
        values[part] = _most(part, settings, n_left if part is table else budget * part.share)
        n_left -= part.n_bytes(settings, values[part])
    if n_left < 0:
        found = ", ".join(
            f"{part.setting} = {values[part]:.10g} ({part.n_bytes(settings, values[part]) / MIB:.1f} MiB"
            f"{'' if part in open_parts else ', set'})"
            for part in PARTS
            if part in values
        )
        raise ValueError(
            f"memory.max_mib = {settings.memory.max_mib:g} must hold all parts together; found "
            f"{(cap - n_left) / MIB:.1f} MiB: {found}. Raise it, or lower what is set"
        )
    chosen: dict[str, dict[str, Any]] = {}
    for part in open_parts:
        section, name = part.place
        chosen.setdefault(section, {})[name] = int(values[part]) if part.one else values[part]
    return chosen


def snapshot_bytes(settings: Sized) -> int:
    """What snapshots hold beside the state, at most: a second copy of embedding rows, of waiting examples and of what
    the ingest keeps (in two processes: in the memory that they share)."""
    planned = {one.part.setting: one for one in plan(settings)}
    width: int = settings.model.width
    rows = planned["embedding.max_mib"].value * MIB / embedding_row_bytes(width) * (4 * width + 4 + 8 + 8)
    ingest: int = sum(one.n_bytes for one in planned.values() if one.part is not PARTS[0])
    return round(rows) + ingest


def _most(part: Part, settings: Sized, n_bytes: float) -> float:
    """The greatest value that takes at most so many bytes, or the least that is allowed."""
    step = 1.0 if part.one else 0.25
    low, high = round(part.least / step), round(part.least / step) + 1
    while part.n_bytes(settings, high * step) <= n_bytes:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if part.n_bytes(settings, middle * step) <= n_bytes else (low, middle)
    return low * step


def _twice(n: float) -> int:
    """The power of two of at least ``2·n``."""
    return 1 << int(max(2 * n - 1, 1)).bit_length()


def _fields(settings: Sized, owner: str) -> list[Any]:
    return [field for field in settings.fields if field.owner == owner]


def _attributes(settings: Sized, owner: str) -> int:
    """Bytes of an owner's attributes: hashes and numbers."""
    fields = _fields(settings, owner)
    return sum(4 if field.kind == "numeric" else 8 * field.n_ids for field in fields)


def _history(settings: Sized) -> int:
    return 8 * len(settings.event_types) * int(settings.features.history_length)


def _embedding(settings: Sized, max_mib: float) -> int:
    # The table's own cap leaves out the filter, a mark per row, and the wide part beside it.
    marks = max_mib * MIB / embedding_row_bytes(settings.model.width)
    wide = WIDE_CELLS * (8 * (len(settings.tasks) + 1) + 4)
    return round(max_mib * MIB + marks) + 2 * SKETCH_CELLS + wide


def _users(settings: Sized, n: float) -> int:
    features = settings.features
    trails = 8 * (features.trail + (_followed(settings) - 1) * min(features.value_trail, features.trail))
    each: int = 8 + 8 + 4 + 1 + _attributes(settings, "user") + _history(settings) + trails
    return int(n) * each + map_bytes(int(n))


def _items(settings: Sized, n: float) -> int:
    each: int = 8 + 8 + 4 + 1 + 4 + 4 + _attributes(settings, "item")
    recent: int = min(settings.features.recent_items, int(n) // 2)
    return int(n) * each + 4 * recent + map_bytes(int(n))


def _counters(settings: Sized, n: float) -> int:
    counts = 4 * len(settings.event_types) * len(settings.features.half_lives_ms)
    return _entries(n) * (16 + counts) + _entries(n) // 4


def _covisits(settings: Sized, n: float) -> int:  # noqa: ARG001 - as the others
    return _entries(n) * 16 + _entries(n) // 4


def _entries(n: float) -> int:
    """Four ways a bucket, buckets in powers of two; a line of cache to lie on its boundary is not counted."""
    return 4 << int(-(-n // 4) - 1).bit_length()


def _exposures(settings: Sized, n: float) -> int:
    """The join's columns, lists, maps and what it tells of closed windows; the features that wait at the learner."""
    # A slot is free again only when the batch that carries its labels is closed.
    slots: int = int(n) + _MOST_BATCHES * settings.batch.max_rows + _OPEN_AT_ONCE
    n_windows = len(_windows_ms(settings))
    if not n_windows:
        return 0
    joined = 6 * 8 + 2 * 4 + n_windows * (2 * 4 + 5 * 8)
    return slots * (joined + waiting_bytes(settings)) + 2 * map_bytes(int(n) + _OPEN_AT_ONCE)


def waiting_bytes(settings: Sized) -> int:
    """Bytes of an example that waits at the learner: features, logits, truth, time, list, mark."""
    n_ids: int = 2 + sum(field.n_ids for field in settings.fields if field.kind != "numeric")
    late = 4 * len(settings.tasks) if any(task.delay == "es_dfm" for task in settings.tasks) else 0
    return late + 8 * n_ids + _history(settings) + 4 * n_dense(settings) + 4 + 8 * len(settings.tasks) + 8 + 8 + 1


def n_dense(settings: Sized) -> int:
    """Dense columns of an example (`features.schema.FeatureSchema`)."""
    features = settings.features
    counters: int = len(settings.event_types) * len(features.half_lives_ms) + 1
    n_numbers: int = sum(field.kind == "numeric" for field in settings.fields)
    followed = _followed(settings)
    rates = len(settings.event_types) - (settings.mode == "exposure")
    of_each: int = rates + (7 if features.trail else 0)
    return counters * (1 + 2 * followed) + of_each * followed + 2 * n_numbers


def _followed(settings: Sized) -> int:
    """Items, and the first categorical item fields."""
    n_categorical: int = sum(field.kind == "categorical" for field in _fields(settings, "item"))
    interests: int = settings.features.interests
    return 1 + min(interests, n_categorical)


def _windows_ms(settings: Sized) -> set[int]:
    if settings.mode != "exposure":
        return set()
    outcomes = [task for task in settings.tasks if task.event_type != settings.events.exposure]
    waits = {task.wait_ms for task in outcomes if task.delay in ("delay_head", "es_dfm")}
    return waits | {task.window_ms for task in outcomes}


def _event_ids(settings: Sized, n: float) -> int:  # noqa: ARG001 - as the others
    """Two generations."""
    return 2 * 8 * max(_twice(n + 1), _FEWEST_CELLS)


PARTS = (
    Part("embedding.max_mib", "", 0.26, 1.0, _embedding),
    Part("features.users", "user", 0.1, 16, _users),
    Part("features.items", "item", 0.04, 16, _items),
    Part("features.pairs", "pair", 0.2, 1024, _counters),
    Part("features.values", "value", 0.1, 1024, _counters),
    Part("features.covisits", "pair of items", 0.04, 1024, _covisits),
    Part("events.max_open", "open exposure", 0.16, 1, _exposures),
    Part("events.deduplicate_max", "event id", 0.1, 1, _event_ids),
)
"""The embedding table is first: it takes what the others leave. Counters have much, since they are missed first
(docs/operations.md)."""
