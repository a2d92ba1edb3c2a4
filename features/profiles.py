"""Profiles: what is known of users and items so far. State as arrays, the updates compiled, every bound hard.

Of a user: attributes and the last items per event type. Of an item: attributes (the catalogue that negatives and
scoring read) and its share of recent traffic. Of pairs and values: decayed counters (`features.counters`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.settings import FeatureSettings
from features.compiled import compiled
from features.counters import Counters, add, load_counters, new_counters, pair_key, save_counters
from features.covisits import (
    Covisits,
    choices_key,
    load_covisits,
    meetings_key,
    new_covisits,
    save_covisits,
    unordered,
)
from features.covisits import add as count_together
from features.directory import Directory, admit, evict, is_full, load_directory, new_directory, save_directory
from features.idmap import Integer, Real, find, mix
from features.schema import FeatureSchema

CLIP = 5.0
"""Spreads from its mean that a number counts for at most."""
_FIRST_NUMBERS = 20.0
"""Numbers after which the spread is known well enough to clip by it."""

Bools = NDArray[np.bool_]
Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]
Float64s = NDArray[np.float64]

NEGATIVES, RANKING = 0, 1  # the two streams of random numbers


class Profiles(NamedTuple):
    """All state of the features, as arrays (Y event types, H history, R recent traffic)."""

    users: Directory
    history: Int64s  # [users, Y, H], item ids, newest first
    items: Directory
    live: Int32s  # [items], rows of known items, in order of appearance
    recent_count: Int32s  # [items], how often the item stands in `recent`
    recent: Int32s  # [R], item rows of the latest events, a ring
    traffic: Int64s  # [3]: known items, ring position, ring length
    pairs: Counters
    values: Counters
    trail: Int64s  # [users, M + I·V], items chosen last, then their values; of any type, newest first, none twice
    trails: Int64s  # [1 + I + 1], where the trail of items, and of each field's values, begins, and where all end
    covisits: Covisits
    chosen: Bools  # [Y], types of events that a user chose, not only was shown
    moments: Float64s  # [numbers, 3]: count, mean, sum of squared deviations (Welford)
    random: NDArray[np.uint64]  # [2], splitmix64 states: of negatives, of ranking (looking changes nothing)
    half_lives_ms: Float64s  # [L]
    exposure: Int64s  # [1], the type of event that only shows an item; -1: none does
    missing: Int64s  # [C], the id of "not given" per column of ids
    uniform_share: Float64s  # [1]
    touched_users: Bools  # [users], rows that changed since the last cut
    touched_items: Bools  # [items]


def new_profiles(settings: FeatureSettings, schema: FeatureSchema, uniform_share: float, seed: int) -> Profiles:
    """Empty profiles."""
    n_types, n_half_lives = len(schema.event_types), len(schema.half_lives_ms)
    n_numbers = sum(len(reader.numeric) for reader in (schema.item, schema.user, schema.context))
    return Profiles(
        users=new_directory(settings.users, schema.user.n_ids, len(schema.user.numeric)),
        history=np.zeros((settings.users, n_types, settings.history_length), np.int64),
        items=new_directory(settings.items, schema.item.n_ids, len(schema.item.numeric)),
        live=np.zeros(settings.items, np.int32),
        recent_count=np.zeros(settings.items, np.int32),
        # An item in the ring is not evicted, so the ring must leave most rows evictable.
        recent=np.zeros(min(settings.recent_items, settings.items // 2), np.int32),
        traffic=np.zeros(3, np.int64),
        pairs=new_counters(settings.pairs, n_types, n_half_lives),
        values=new_counters(settings.values, n_types, n_half_lives),
        trail=np.zeros((settings.users, sum(schema.trails)), np.int64),
        trails=np.cumsum([0, *schema.trails]),
        covisits=new_covisits(settings.covisits, settings.covisit_half_life_ms),
        chosen=np.array(schema.chosen, np.bool_),
        moments=np.zeros((n_numbers, 3), np.float64),
        random=np.array([seed, seed + 1]).astype(np.uint64),
        half_lives_ms=np.array(schema.half_lives_ms, np.float64),
        exposure=np.array([schema.exposure], np.int64),
        missing=schema.missing,
        uniform_share=np.array([uniform_share], np.float64),
        touched_users=np.zeros(settings.users, np.bool_),
        touched_items=np.zeros(settings.items, np.bool_),
    )


@compiled
def uniform(random: NDArray[np.uint64], stream: Integer) -> Real:
    """A random number in [0, 1), advancing one of the states (splitmix64)."""
    random[stream] += np.uint64(0x9E3779B97F4A7C15)
    return np.float64(mix(np.int64(random[stream])) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled
def user_row(profiles: Profiles, user: Integer, now_ms: Integer) -> Integer:
    """The user's row, made if need be."""
    row = find(profiles.users.keys, profiles.users.rows, user)
    if row < 0:
        if is_full(profiles.users):
            evict(profiles.users, profiles.recent_count[:0])
        row = admit(profiles.users, user)
        profiles.history[row, :, :] = 0
        profiles.trail[row, :] = 0
    profiles.touched_users[row] = True
    profiles.users.last_ms[row] = max(now_ms, profiles.users.last_ms[row])
    return row


@compiled
def item_row(profiles: Profiles, item: Integer, now_ms: Integer) -> Integer:
    """The item's row, made if need be."""
    row = find(profiles.items.keys, profiles.items.rows, item)
    if row < 0:
        if is_full(profiles.items):
            evict(profiles.items, profiles.recent_count)
            n_live = 0
            for k in range(profiles.traffic[0]):
                if profiles.items.ids[profiles.live[k]] != 0:
                    profiles.live[n_live] = profiles.live[k]
                    n_live += 1
            profiles.traffic[0] = n_live
        row = admit(profiles.items, item)
        profiles.live[profiles.traffic[0]] = row
        profiles.traffic[0] += 1
    profiles.touched_items[row] = True
    profiles.items.last_ms[row] = max(now_ms, profiles.items.last_ms[row])
    return row


@compiled
def log_q(profiles: Profiles, row: Integer) -> Real:
    """Log of (chance that :func:`sample_item` draws this item × number of known items); row -1: an unknown item."""
    if profiles.traffic[2] == 0:
        return np.float64(0.0)
    ratio = profiles.uniform_share[0]
    if row >= 0:
        ratio += (1.0 - ratio) * profiles.recent_count[row] / profiles.traffic[2] * profiles.traffic[0]
    return np.float64(np.log(ratio))


@compiled
def sample_item(profiles: Profiles) -> Integer:
    """The row of a random known item: mostly uniform, the rest by recent traffic; needs a known item."""
    u = uniform(profiles.random, NEGATIVES)
    if profiles.traffic[2] > 0 and u >= profiles.uniform_share[0]:
        return np.int64(profiles.recent[np.int64(uniform(profiles.random, NEGATIVES) * profiles.traffic[2])])
    return np.int64(profiles.live[np.int64(uniform(profiles.random, NEGATIVES) * profiles.traffic[0])])


@compiled
def learn_attributes(directory: Directory, row: Integer, attributes: Int64s, numbers: Float32s) -> None:
    """Keep what an event says of a user or an item; what it leaves out stays as it was."""
    for k in range(len(attributes)):
        if attributes[k] != 0:
            directory.attributes[row, k] = attributes[k]
    for k in range(len(numbers)):
        if not np.isnan(numbers[k]):
            directory.numbers[row, k] = numbers[k]


@compiled
def learn_number(moments: Float64s, value: Real) -> None:
    """Running mean and variance of one number (Welford 1962).

    A number counts as far as it counts for the feature, up to five spreads from the mean: one absurd price would
    otherwise make all others the same for ever, and up to one in twenty-five leaves the spread bounded.
    """
    if not np.isnan(value):
        if moments[0] >= _FIRST_NUMBERS and moments[2] > 0.0:
            reach = CLIP * np.sqrt(moments[2] / moments[0])
            value = min(max(value, moments[1] - reach), moments[1] + reach)
        moments[0] += 1.0
        deviation = value - moments[1]
        moments[1] += deviation / moments[0]
        moments[2] += deviation * (value - moments[1])


@compiled
def _walk(profiles: Profiles, u_row: Integer, which: Integer, item: Integer, now_ms: Integer) -> None:
    """Count an item, or a value, and its pairs with those chosen before it; put it at the head of its trail."""
    trail = profiles.trail[u_row, profiles.trails[which] : profiles.trails[which + 1]]
    if len(trail) == 0 or trail[0] == item:
        return
    place = len(trail) - 1
    for m in range(len(trail)):
        if trail[m] == item or trail[m] == 0:
            place = m
            break
    n_pairs = 0
    for m in range(len(trail)):
        if trail[m] == 0:
            break
        if trail[m] != item:
            count_together(profiles.covisits, unordered(trail[m], item), now_ms)
            n_pairs += 1
    count_together(profiles.covisits, item, now_ms)
    count_together(profiles.covisits, choices_key(which), now_ms)
    count_together(profiles.covisits, meetings_key(which), now_ms, n_pairs)
    for m in range(place, 0, -1):
        trail[m] = trail[m - 1]
    trail[0] = item


@compiled
def remember(
    profiles: Profiles,
    user: Integer,
    u_row: Integer,
    item: Integer,
    i_row: Integer,
    kind: Integer,
    now_ms: Integer,
    interests: Integer,
) -> None:
    """Take one event into the user's history, the recent traffic and all counters."""
    past = profiles.history[u_row, kind]
    if past[0] != item:
        for k in range(len(past) - 1, 0, -1):
            past[k] = past[k - 1]
        past[0] = item

    size = len(profiles.recent)
    position = profiles.traffic[1]
    if profiles.traffic[2] == size:
        profiles.recent_count[profiles.recent[position]] -= 1
    else:
        profiles.traffic[2] += 1
    profiles.recent[position] = i_row
    profiles.recent_count[i_row] += 1
    profiles.traffic[1] = (position + 1) % size

    if profiles.chosen[kind]:
        _walk(profiles, u_row, 0, item, now_ms)
        for k in range(interests):
            value = profiles.items.attributes[i_row, k]
            if value != 0:
                _walk(profiles, u_row, 1 + k, value, now_ms)

    add(profiles.values, profiles.missing[1], now_ms, kind, profiles.half_lives_ms)  # of all items together
    add(profiles.values, user, now_ms, kind, profiles.half_lives_ms)
    add(profiles.values, item, now_ms, kind, profiles.half_lives_ms)
    add(profiles.pairs, pair_key(user, item), now_ms, kind, profiles.half_lives_ms)
    for k in range(interests):
        value = profiles.items.attributes[i_row, k]
        if value != 0:
            add(profiles.values, value, now_ms, kind, profiles.half_lives_ms)
            add(profiles.pairs, pair_key(user, value), now_ms, kind, profiles.half_lives_ms)


def n_evicted(profiles: Profiles) -> dict[str, int]:
    """How often each part forgot something because it was full."""
    kept = {name: int(getattr(profiles, name).counts[1]) for name in ("users", "items")}
    return kept | {name: int(getattr(profiles, name).evicted[0]) for name in ("pairs", "values", "covisits")}


def save_profiles(profiles: Profiles, *, changes: bool = False) -> dict[str, NDArray[Any]]:
    """The profiles as named arrays, only the parts in use, all copies. From here on the next changes count.

    :param changes: of what is kept by row or entry, only that which changed since the last call.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name in ("users", "items"):
        directory: Directory = getattr(profiles, name)
        touched: Bools = getattr(profiles, f"touched_{name}")
        arrays |= _under(name, save_directory(directory, touched if changes else None))
        touched[:] = False
    rows = arrays["users.row"]
    arrays |= {name: np.take(getattr(profiles, name), rows, axis=0) for name in ("history", "trail")}
    arrays |= _under("covisits", save_covisits(profiles.covisits, changes=changes))
    for name in ("pairs", "values"):
        arrays |= _under(name, save_counters(getattr(profiles, name), changes=changes))
    arrays["live"] = profiles.live[: profiles.traffic[0]].copy()
    arrays["recent"] = profiles.recent[: profiles.traffic[2]].copy()
    return arrays | {name: getattr(profiles, name).copy() for name in ("traffic", "moments", "random")}


def load_profiles(profiles: Profiles, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Take over what :func:`save_profiles` gave: into fresh profiles all, or the changes into those before them.

    :raises ValueError: the arrays are of other shapes: they were saved under other settings.
    :raises IndexError: likewise, there are more rows than fit.
    :raises KeyError: something is missing.
    """
    for name in ("users", "items"):
        load_directory(getattr(profiles, name), _of(name, arrays))
    for name in ("history", "trail"):
        getattr(profiles, name)[arrays["users.row"]] = arrays[name]
    load_covisits(profiles.covisits, _of("covisits", arrays))
    for name in ("pairs", "values"):
        load_counters(getattr(profiles, name), _of(name, arrays))
    for name in ("traffic", "moments", "random"):
        getattr(profiles, name)[...] = arrays[name]
    profiles.live[: profiles.traffic[0]] = arrays["live"]
    profiles.recent[: profiles.traffic[2]] = arrays["recent"]
    profiles.recent_count[:] = np.bincount(arrays["recent"], minlength=len(profiles.recent_count))


def copy_profiles(profiles: Profiles) -> Profiles:
    """Profiles of their own that hold the same."""
    return Profiles._make(_copied(part) for part in profiles)


def _copied(part: Any) -> Any:
    if isinstance(part, tuple):
        return type(part)(*(_copied(one) for one in part))
    return part.copy() if isinstance(part, np.ndarray) else part


def _under(name: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{name}.{part}": array for part, array in arrays.items()}


def _of(name: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
