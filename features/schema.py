"""Which attribute goes to which column: derived from the settings once, shared by training and scoring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Self

import numpy as np

from contracts.batch import Float32s, Int64s, Layout
from contracts.settings import FieldSpec, Settings
from features.hashing import FieldHasher, missing_id

USER_FIELD = "user_id"
ITEM_FIELD = "item_id"
COVISITS = ("sum", "cosine sum", "cosine max", "cosine latest")
_LARGEST = 1e18
"""Beyond, a number is taken for unknown: nothing that an attribute measures, and its square would leave float32."""


class AttributeReader:
    """Reads one owner's attribute map (``item``, ``user`` or ``context``) into hashes and numbers.

    :param fields: the owner's fields, in the settings' order.
    """

    def __init__(self, fields: tuple[FieldSpec, ...]) -> None:
        self.categorical = tuple(field for field in fields if field.kind == "categorical")
        self.numeric = tuple(field for field in fields if field.kind == "numeric")
        self._hashers = tuple((field.key, FieldHasher(field.name)) for field in self.categorical)
        self._numbers = tuple(field.key for field in self.numeric)

    def __call__(self, attributes: Mapping[str, object]) -> tuple[list[int], list[float]]:
        """Hashes (0 where the event does not say) and numbers (NaN where it does not)."""
        get = attributes.get
        return [hasher(get(key)) for key, hasher in self._hashers], [_number(get(key)) for key in self._numbers]

    def columns(self, attributes: Sequence[Mapping[str, object]]) -> tuple[Int64s, Float32s]:
        """The same of N events: shapes ``[N, categorical]`` and ``[N, numeric]``."""
        hashes = np.empty((len(attributes), len(self._hashers)), np.int64)
        numbers = np.empty((len(attributes), len(self._numbers)), np.float32)
        for place, (key, hasher) in enumerate(self._hashers):
            hashes[:, place] = hasher.column([one.get(key) for one in attributes])
        for place, key in enumerate(self._numbers):
            numbers[:, place] = [_number(one.get(key)) for one in attributes]
        return hashes, numbers


def _number(value: object) -> float:
    if isinstance(value, int | float) and abs(value) <= _LARGEST:
        return float(value)
    return nan


@dataclass(frozen=True)
class FeatureSchema:
    """The columns of :class:`contracts.batch.Rows`, and how to fill them.

    Order of ``ids``: user id, item id, then the categorical item, user and context fields.
    Order of ``dense``: what is known of the user; of the context; of the item, alone and with this user.
    """

    item: AttributeReader
    user: AttributeReader
    context: AttributeReader
    interests: int
    event_types: tuple[str, ...]
    half_lives_ms: tuple[int, ...]
    chosen: tuple[bool, ...]
    """Per event type: a user chose the item, so it belongs to a task; an impression is only shown."""
    layout: Layout

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The schema that these settings ask for."""
        item, user, context = (
            AttributeReader(tuple(field for field in settings.fields if field.owner == owner))
            for owner in ("item", "user", "context")
        )
        interests = min(settings.features.interests, len(item.categorical))
        types = settings.event_types
        half_lives_ms = settings.features.half_lives_ms
        counters = [f"{kind}:{half_life_ms // 1000}s" for kind in types for half_life_ms in half_lives_ms] + ["recency"]
        valued = [field.name for field in item.categorical[:interests]]
        dense = (
            [f"user {counter}" for counter in counters]
            + [f"{field.name} {what}" for field in (*user.numeric, *context.numeric) for what in ("value", "missing")]
            + [f"user x item {counter}" for counter in counters]
            + [f"user x {name} {counter}" for name in valued for counter in counters]
            + [f"item {counter}" for counter in counters]
            + [f"{name} {counter}" for name in valued for counter in counters]
            + ([f"covisits {what}" for what in COVISITS] if settings.features.trail else [])
            + [f"{field.name} {what}" for field in item.numeric for what in ("value", "missing")]
        )
        fields = (*item.categorical, *user.categorical, *context.categorical)
        return cls(
            item=item,
            user=user,
            context=context,
            interests=interests,
            event_types=types,
            half_lives_ms=half_lives_ms,
            chosen=tuple(kind in {task.event_type for task in settings.tasks} for kind in types),
            layout=Layout(
                tasks=tuple(task.name for task in settings.tasks),
                fields=(USER_FIELD, ITEM_FIELD, *(field.name for field in fields)),
                dense=tuple(dense),
                event_types=types,
                history_length=settings.features.history_length,
            ),
        )

    @property
    def missing(self) -> Int64s:
        """The id of "not given" for each id field."""
        return np.array([missing_id(name) for name in self.layout.fields], np.int64)


def no_numbers(count: int) -> Float32s:
    """A row of ``count`` unknown numbers."""
    return np.full(count, np.nan, np.float32)
