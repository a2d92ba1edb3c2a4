"""Which attribute goes to which column: derived from the settings once, shared by training and scoring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Self

import numpy as np

from contracts.batch import Float32s, Int64s, Layout
from contracts.settings import FieldSpec, Settings
from features.hashing import EMPTY, BagHasher, FieldHasher, labels, missing_id, words

USER_FIELD = "user_id"
ITEM_FIELD = "item_id"
OWNERS = ("item", "user", "context")
COVISITS = ("sum", "cosine sum", "cosine max", "cosine latest", "lift", "lift latest")
_LARGEST = 1e18
"""Beyond, a number is taken for unknown: nothing that an attribute measures, and its square would leave float32."""


def fields_of(settings: Settings, owner: str) -> tuple[FieldSpec, ...]:
    """The declared fields of an owner's attributes, in the settings' order."""
    return tuple(field for field in settings.fields if field.owner == owner)


def keys_of(settings: Settings, owner: str) -> tuple[str, ...]:
    """Their keys, each once: two fields may read one attribute."""
    return _keys(fields_of(settings, owner))


def _keys(fields: tuple[FieldSpec, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(field.key for field in fields))


class AttributeReader:
    """Reads one owner's attribute map (``item``, ``user`` or ``context``) into hashes and numbers.

    Order of the hashes: the categorical fields, one each, then those of several values, their slots side by side.

    :param fields: the owner's fields, in the settings' order.
    """

    def __init__(self, fields: tuple[FieldSpec, ...]) -> None:
        self.categorical = tuple(field for field in fields if field.kind == "categorical")
        self.numeric = tuple(field for field in fields if field.kind == "numeric")
        self.several = tuple(field for field in fields if field.kind in ("multi", "text"))
        self.n_ids = len(self.categorical) + sum(field.n_ids for field in self.several)
        self._keys = _keys(fields)
        self._hashers = tuple((field.key, FieldHasher(field.name)) for field in self.categorical)
        self._bags = tuple(
            (
                field.key,
                BagHasher(field.name, words if field.kind == "text" else labels(field.separator), field.n_ids),
                field.n_ids,
            )
            for field in self.several
        )
        self._numbers = tuple(field.key for field in self.numeric)

    def __call__(self, attributes: Mapping[str, object]) -> tuple[list[int], list[float]]:
        """Hashes (0 where the event does not say) and numbers (NaN where it does not)."""
        get = attributes.get
        hashes = [hasher(get(key)) for key, hasher in self._hashers]
        for key, bag, _ in self._bags:
            hashes.extend(bag(get(key)))
        return hashes, [_number(get(key)) for key in self._numbers]

    def columns(self, attributes: Sequence[Mapping[str, object]]) -> tuple[Int64s, Float32s]:
        """The same of N events: shapes ``[N, n_ids]`` and ``[N, numeric]``."""
        return self.of_values([[one.get(key) for one in attributes] for key in self._keys], len(attributes))

    def of_values(self, values: Sequence[Sequence[object]], n_events: int) -> tuple[Int64s, Float32s]:
        """The same of the values of each of the fields' keys (:func:`keys_of`), N each; None where not given."""
        hashes = np.empty((n_events, self.n_ids), np.int64)
        numbers = np.empty((n_events, len(self._numbers)), np.float32)
        of_key = dict(zip(self._keys, values, strict=True))
        for place, (key, hasher) in enumerate(self._hashers):
            hashes[:, place] = hasher.column(of_key[key])
        at = len(self._hashers)
        for key, bag, n_slots in self._bags:
            if n_events:
                hashes[:, at : at + n_slots] = list(map(bag, of_key[key]))
            at += n_slots
        for place, key in enumerate(self._numbers):
            numbers[:, place] = list(map(_number, of_key[key]))
        return hashes, numbers


def _number(value: object) -> float:
    if isinstance(value, int | float) and abs(value) <= _LARGEST:
        return float(value)
    return nan


@dataclass(frozen=True)
class FeatureSchema:
    """The columns of :class:`contracts.batch.Rows`, and how to fill them.

    Order of ``ids``: user id, item id, then the item's, the user's and the context's (:class:`AttributeReader`).
    Order of ``dense``: what is known of the user; of the context; of the item, alone and with this user.
    """

    item: AttributeReader
    user: AttributeReader
    context: AttributeReader
    interests: int
    exposure: int
    """The type of event that only shows an item; -1: every event chooses."""
    event_types: tuple[str, ...]
    half_lives_ms: tuple[int, ...]
    chosen: tuple[bool, ...]
    """Per event type: a user chose the item, so it belongs to a task, and is not what only shows items."""
    trails: tuple[int, ...]
    """How many of each of :attr:`followed` a user's trails keep."""
    dense_groups: tuple[tuple[str, int], ...]
    """The dense columns in order, by what they tell of: its name, and how many columns."""
    layout: Layout

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The schema that these settings ask for."""
        item, user, context = (AttributeReader(fields_of(settings, owner)) for owner in OWNERS)
        interests = min(settings.features.interests, len(item.categorical))
        types = settings.event_types
        half_lives_ms = settings.features.half_lives_ms
        counters = [f"{kind}:{half_life_ms // 1000}s" for kind in types for half_life_ms in half_lives_ms] + ["recency"]
        valued = [field.name for field in item.categorical[:interests]]
        number = ["value", "missing"]
        followed = ["item", *valued] if settings.features.trail else []
        of_user = [
            ("user", counters),
            *((f"user trail {name}", ["popularity"]) for name in followed),
            *((field.name, number) for field in user.numeric),
        ]
        exposure = types.index(settings.events.exposure) if settings.mode == "exposure" else -1
        rates = [kind for place, kind in enumerate(types) if place != exposure]
        groups = [
            *of_user,
            *((field.name, number) for field in context.numeric),
            ("user x item", counters),
            *((f"user x {name}", counters) for name in valued),
            ("item", counters),
            *((name, counters) for name in valued),
            *((f"{name} rate", rates) for name in ("item", *valued)),
            *((f"{name} covisits", list(COVISITS)) for name in followed),
            *((field.name, number) for field in item.numeric),
        ]
        fields = [field for reader in (item, user, context) for field in (*reader.categorical, *reader.several)]
        return cls(
            item=item,
            user=user,
            context=context,
            interests=interests,
            exposure=exposure,
            event_types=types,
            dense_groups=tuple((group, len(columns)) for group, columns in groups),
            half_lives_ms=half_lives_ms,
            chosen=tuple(
                kind in {task.event_type for task in settings.tasks} and place != exposure
                for place, kind in enumerate(types)
            ),
            trails=(
                settings.features.trail,
                *[min(settings.features.value_trail, settings.features.trail)] * interests,
            ),
            layout=Layout(
                tasks=tuple(task.name for task in settings.tasks),
                fields=(USER_FIELD, ITEM_FIELD, *(field.name for field in fields)),
                slots=(1, 1, *(field.n_ids for field in fields)),
                dense=tuple(f"{group} {column}" for group, columns in groups for column in columns),
                event_types=types,
                history_length=settings.features.history_length,
                item_fields=1 + len(item.categorical) + len(item.several),
                user_fields=len(user.categorical) + len(user.several),
                user_dense=sum(len(columns) for _, columns in of_user),
            ),
        )

    @property
    def followed(self) -> tuple[str, ...]:
        """What a user's trails are of: items, and the first categorical item fields."""
        return ("item", *(field.name for field in self.item.categorical[: self.interests]))

    @property
    def missing(self) -> Int64s:
        """What stands in each column of ``ids`` where a field is not given, shape ``[C]``: its id of "not given"."""
        fields = zip(self.layout.fields, self.layout.slots, strict=True)
        return np.array([one for name, n in fields for one in (missing_id(name), *[EMPTY] * (n - 1))], np.int64)


def no_numbers(count: int) -> Float32s:
    """A row of ``count`` unknown numbers."""
    return np.full(count, np.nan, np.float32)
