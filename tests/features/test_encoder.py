"""The encoder: event by event, the same rows for training and for scoring."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import exp, log, log1p, nan, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from contracts.batch import Rows
from contracts.settings import Settings
from features.covisits import add, choices_key, meetings_key, unordered
from features.encoder import Encoded, Encoder, EventColumns
from features.hashing import EMPTY, hash_id, missing_id
from features.profiles import load_profiles, new_profiles, save_profiles
from features.schema import COVISITS, AttributeReader, FeatureSchema

HALF_LIVES_S = (60, 3600)
FIELDS: list[dict[str, Any]] = [
    {"source": "item.category"},
    {"source": "item.tags", "kind": "multi", "slots": 3},
    {"source": "item.brand"},
    {"source": "item.price", "kind": "numeric"},
    {"source": "user.country"},
    {"source": "user.age", "kind": "numeric"},
    {"source": "user.about", "kind": "text", "slots": 2},
    {"source": "context.device"},
    {"source": "context.hour", "kind": "numeric"},
]


@dataclass(frozen=True)
class Happened:
    """One event, as the encoder is told of it."""

    user: int = 1
    item: int = 1
    time_ms: int = 0
    kind: int = 0
    emit: bool = True
    keep: bool = False
    negatives: int = 0
    rank: bool = False
    list_id: int = 0
    about_item: dict[str, Any] = field(default_factory=dict)
    about_user: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)


def _encoder(users: int = 1000, items: int = 1000, seed: int = 0, **kwargs: int) -> Encoder:
    settings = Settings.model_validate(
        {
            "mode": "implicit",
            "fields": FIELDS,
            "features": {
                "users": users,
                "items": items,
                "recent_items": 64,
                "history_length": 3,
                "half_lives": [f"{seconds}s" for seconds in HALF_LIVES_S],
            },
        }
    )
    schema = FeatureSchema.of(settings)
    return Encoder(schema, new_profiles(settings.features, schema, 0.7, seed), **kwargs)


def _told(reader: AttributeReader, maps: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    read = [reader(attributes) for attributes in maps]
    hashes = np.array([hashes for hashes, _ in read], np.int64).reshape(len(maps), reader.n_ids)
    return hashes, np.array([numbers for _, numbers in read], np.float32).reshape(len(maps), len(reader.numeric))


def _encode(encoder: Encoder, events: list[Happened]) -> Encoded:
    schema = encoder.schema
    item_attributes, item_numbers = _told(schema.item, [event.about_item for event in events])
    user_attributes, user_numbers = _told(schema.user, [event.about_user for event in events])
    context_attributes, context_numbers = _told(schema.context, [event.context for event in events])
    integers = {
        name: np.array([getattr(event, name) for event in events], np.int64)
        for name in ("kind", "user", "item", "time_ms", "emit", "keep", "negatives", "rank", "list_id")
    }
    return encoder.encode(
        EventColumns(
            **integers,
            item_attributes=item_attributes,
            item_numbers=item_numbers,
            user_attributes=user_attributes,
            user_numbers=user_numbers,
            context_attributes=context_attributes,
            context_numbers=context_numbers,
        )
    )


def _score(encoder: Encoder, event: Happened, items: list[int]) -> tuple[Rows, bool, np.ndarray]:
    """As the scoring worker asks before the event is known; the attributes are those of the event's own item."""
    schema = encoder.schema
    about = [event.about_item if item == event.item else {} for item in items]
    user, context = _told(schema.user, [event.about_user]), _told(schema.context, [event.context])
    return encoder.encode_candidates(
        event.user,
        np.array(items, np.int64),
        event.time_ms,
        *(array[0] for array in user),
        *(array[0] for array in context),
        *_told(schema.item, about),
    )


def _tags(rng: np.random.Generator) -> list[str]:
    return [f"t{tag}" for tag in rng.integers(6, size=rng.integers(5))]


def _stream(n_events: int, seed: int, n_users: int = 12, n_items: int = 30, **changes: Any) -> list[Happened]:
    rng = np.random.default_rng(seed)

    def maybe(**values: Any) -> dict[str, Any]:
        return {key: value for key, value in values.items() if rng.random() < 0.6}

    events, now_ms = [], 1_700_000_000_000
    for _ in range(n_events):
        now_ms += int(rng.integers(0, 60_000)) - 500
        item, user = 1 + int(rng.zipf(1.5)) % n_items, 1001 + int(rng.integers(n_users))
        event = Happened(
            user=user,
            item=item,
            time_ms=now_ms,
            kind=int(rng.integers(3)),
            emit=bool(rng.random() < 0.8),
            negatives=int(rng.integers(4)),
            keep=bool(rng.random() < 0.5),
            about_item=maybe(category=item % 4, brand=f"b{item % 3}", price=float(rng.lognormal(3)), tags=_tags(rng)),
            about_user=maybe(country=user % 3, age=20 + user, about=" ".join(_tags(rng))),
            context=maybe(device="phone", hour=int(rng.integers(24))),
        )
        events.append(replace(event, **changes))
    return events


def _assert_same_rows(found: Rows, wanted: Rows) -> None:
    for name in ("ids", "history", "dense", "log_q"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


def _together(pieces: list[Encoded]) -> Rows:
    return Rows(
        *(np.concatenate([getattr(p.rows, name) for p in pieces]) for name in ("ids", "history", "dense", "log_q"))
    )


def _assert_same_state(found: Encoder, wanted: Encoder, *, but: tuple[str, ...] = ()) -> None:
    left, right = save_profiles(found.profiles), save_profiles(wanted.profiles)
    for name in right.keys() - set(but):
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def _dense(encoder: Encoder, rows: Rows, row: int = 0) -> dict[str, float]:
    return dict(zip(encoder.schema.layout.dense, rows.dense[row].tolist(), strict=True))


# -- order


@profile(deadline=None, max_examples=25)
@given(cuts=st.sets(st.integers(1, 119)), n_kept=st.sampled_from([16, 1000]), seed=st.integers(0, 3))
def test_a_stream_gives_the_same_rows_and_state_however_it_is_cut(cuts: set[int], n_kept: int, seed: int) -> None:
    events = _stream(120, seed, n_users=40, n_items=80, rank=True)
    whole, pieces = (_encoder(n_kept, n_kept, known_before_ranking=5, candidates=4) for _ in range(2))
    at_once = _encode(whole, events)
    bounds = [0, *sorted(cuts), len(events)]
    parts = [_encode(pieces, events[start:stop]) for start, stop in pairwise(bounds)]
    _assert_same_rows(_together(parts), at_once.rows)
    np.testing.assert_array_equal(np.concatenate([part.sampled for part in parts]), at_once.sampled)
    np.testing.assert_array_equal(np.concatenate([part.new_item for part in parts]), at_once.new_item)
    np.testing.assert_array_equal(np.concatenate([part.tie_breaks for part in parts]), at_once.tie_breaks)
    np.testing.assert_array_equal(np.concatenate([part.ranking.ids for part in parts]), at_once.ranking.ids)
    _assert_same_state(pieces, whole)


def test_an_exposure_never_sees_itself_and_the_next_one_sees_it() -> None:
    encoder = _encoder()
    first, second = (_encode(encoder, [Happened(user=3, item=5, time_ms=1000, keep=True)]).rows for _ in range(2))
    assert not first.history.any()
    assert not any(value for name, value in _dense(encoder, first).items() if "missing" not in name)
    assert second.history[0].tolist() == [[5, 0, 0], [0, 0, 0], [0, 0, 0]]
    dense = _dense(encoder, second)
    for owner in ("user", "item", "user x item"):
        assert dense[f"{owner} content_view:60s"] == pytest.approx(log1p(1))
        assert dense[f"{owner} click:60s"] == 0
        assert dense[f"{owner} recency"] == 1


def test_counters_in_a_row_are_those_of_all_events_before_it() -> None:
    """Against their definition, over a stream small enough that nothing is evicted."""
    encoder = _encoder()
    types = encoder.schema.event_types
    past: dict[tuple[object, ...], list[tuple[int, int]]] = defaultdict(list)
    for event in _stream(150, 4, about_user={}, emit=True, keep=True, negatives=0):
        event = replace(event, about_item={"category": event.item % 4})
        dense = _dense(encoder, _encode(encoder, [event]).rows)
        category = event.item % 4
        keys: dict[str, tuple[object, ...]] = {
            "user": ("user", event.user),
            "item": ("item", event.item),
            "item.category": ("category", category),
            "user x item": ("user", event.user, "item", event.item),
            "user x item.category": ("user", event.user, "category", category),
        }
        for name, key in keys.items():
            for kind, type_ in enumerate(types):
                for half_life_s in HALF_LIVES_S:
                    # As in the counters: an event that is out of order counts in full, from the newest event on.
                    count, newest_ms = 0.0, None
                    for other, time_ms in past[key]:
                        step_ms = max(time_ms - newest_ms, 0) if newest_ms is not None else 0
                        newest_ms = time_ms if newest_ms is None else max(newest_ms, time_ms)
                        count = count * 2 ** (-step_ms / half_life_s / 1000) + (other == kind)
                    if newest_ms is not None:
                        count *= 2 ** (-max(event.time_ms - newest_ms, 0) / half_life_s / 1000)
                    assert dense[f"{name} {type_}:{half_life_s}s"] == pytest.approx(log1p(count), abs=1e-4)
        for key in keys.values():
            past[key].append((event.kind, event.time_ms))


# -- training and scoring


def _trailing(chosen: list[tuple[int, int]], user: int, length: int) -> list[int]:
    """What a user chose, items or categories, newest first, none twice."""
    trail: list[int] = []
    for by, one in chosen:
        if by == user and trail[:1] != [one]:
            trail = [one, *(other for other in trail if other != one)]
    return trail[:length]


def _chosen_together(chosen: list[tuple[int, int]], length: int) -> Counter[frozenset[int]]:
    """How often two were chosen close to each other: every one with each of the trail before it."""
    counts: Counter[frozenset[int]] = Counter()
    for n, (user, one) in enumerate(chosen):
        trail = _trailing(chosen[:n], user, length)
        if trail[:1] != [one]:
            counts.update(frozenset({other, one}) for other in trail if other != one)
    return counts


def _times_chosen(chosen: list[tuple[int, int]], length: int) -> Counter[int]:
    """How often each was chosen; at once again does not count."""
    return Counter(one for n, (user, one) in enumerate(chosen) if _trailing(chosen[:n], user, length)[:1] != [one])


def _lift(own: int, trail: list[int], counts: Counter[frozenset[int]], totals: Counter[int]) -> float:
    """Σ log((met + 1) / (met by chance + 1)); by chance, each place of a pair is anyone's by the share of choices."""
    pairs, choices = counts.total(), max(totals.total(), 1)
    return sum(
        log((counts[frozenset({other, own})] + 1) / (2 * pairs * totals[own] * totals[other] / choices**2 + 1))
        for other in trail
        if other != own
    )


@pytest.mark.parametrize("followed", ["item", "item.category"])
def test_covisits_in_a_row_are_those_of_item_based_collaborative_filtering(followed: str) -> None:
    """Against plain dictionaries, over a minute: nothing has decayed yet. Likewise of the items' categories."""
    events = [
        replace(event, time_ms=n, about_item={"category": event.item % 7})
        for n, event in enumerate(_stream(120, 12, negatives=0))
    ]
    chosen = [(event.user, event.item if followed == "item" else event.item % 7) for event in events]
    encoder = _encoder()
    encoded = _encode(encoder, events)
    columns = [encoder.schema.layout.dense.index(f"{followed} covisits {name}") for name in COVISITS]
    length, n_some = dict(zip(encoder.schema.followed, encoder.schema.trails, strict=True))[followed], 0
    popularity = encoder.schema.layout.dense.index(f"user trail {followed} popularity")
    for row, n in enumerate(encoded.event.tolist()):
        (user, own), counts = chosen[n], _chosen_together(chosen[:n], length)
        totals = _times_chosen(chosen[:n], length)
        trail = _trailing(chosen[:n], user, length)
        found = [(place, other, counts[frozenset({other, own})]) for place, other in enumerate(trail)]
        cosines = {
            place: count / sqrt(max(totals[other], count) * max(totals[own], count))
            for place, other, count in found
            if count and other != own
        }
        expected = [
            log1p(sum(count for place, _, count in found if place in cosines)),
            sqrt(sum(cosines.values())),
            sqrt(max(cosines.values(), default=0.0)),
            sqrt(cosines.get(0, 0.0)),
            _lift(own, trail, counts, totals) / sqrt(length),
            _lift(own, trail[: length // 4], counts, totals) / sqrt(length // 4),
        ]
        np.testing.assert_allclose(encoded.rows.dense[row, columns], expected, atol=2e-3)
        popular = [log1p(totals[other]) for other in trail]
        mean = sum(popular) / max(len(popular), 1)
        assert encoded.rows.dense[row, popularity] == pytest.approx(mean, abs=1e-4)
        n_some += bool(cosines)
    assert n_some > 50


def test_lift_is_finite_where_all_of_a_long_trail_meet_always_or_never() -> None:
    """A trail of 64; counts of a million: the products stay within a double, their quotient within a float."""
    settings = Settings.model_validate({"mode": "implicit", "features": {"trail": 64}})
    schema = FeatureSchema.of(settings)
    columns = [schema.layout.dense.index(f"item covisits {name}") for name in ("lift", "lift latest")]
    for met in (0, 1_000_000):
        encoder = Encoder(schema, new_profiles(settings.features, schema, 1.0, 0))
        _encode(encoder, [Happened(item=item, time_ms=item) for item in range(1, 66)])
        covisits, at_ms = encoder.profiles.covisits, 100
        trail = [int(one) for one in encoder.profiles.trail[0]]
        own = 10**9
        for one in [own, *trail]:
            add(covisits, one, at_ms, 1_000_000)
        for one in trail if met else ():
            add(covisits, unordered(own, one), at_ms, met)
        add(covisits, choices_key(0), at_ms, 1 if met == 0 else 10**9)
        add(covisits, meetings_key(0), at_ms, 1_000)
        rows = _score(encoder, Happened(time_ms=at_ms), [own])[0]
        lift, latest = rows.dense[0, columns].tolist()
        assert np.isfinite([lift, latest]).all()
        assert (lift > 5 and latest > 5) if met else (lift < -5 and latest < -5)


@pytest.mark.parametrize("tasks", [["click"], ["impression", "click"]])
def test_what_was_only_shown_is_nobodys_choice(tasks: list[str]) -> None:
    """An impression leaves no trail, whether or not it has a task. A click does."""
    sections = {"events": {"exposure": "impression"}, "tasks": [{"name": name} for name in tasks]}
    settings = Settings.model_validate(sections)
    schema = FeatureSchema.of(settings)
    encoder = Encoder(schema, new_profiles(settings.features, schema, 1.0, 0))
    shown, clicked = (settings.event_types.index(name) for name in ("impression", "click"))
    _encode(encoder, [Happened(item=item, time_ms=item, kind=shown) for item in (1, 2)])
    assert not encoder.profiles.trail.any()
    assert not encoder.profiles.covisits.cells.any()
    _encode(encoder, [Happened(item=item, time_ms=item, kind=clicked) for item in (3, 4)])
    assert encoder.profiles.trail[0, :3].tolist() == [4, 3, 0]


def test_a_trail_keeps_what_was_chosen_last_and_fewer_values_than_items() -> None:
    settings = Settings.model_validate(
        {"mode": "implicit", "fields": [{"source": "item.category"}], "features": {"trail": 4, "value_trail": 2}}
    )
    schema = FeatureSchema.of(settings)
    encoder = Encoder(schema, new_profiles(settings.features, schema, 1.0, 0))
    _encode(encoder, [Happened(item=n, time_ms=n, about_item={"category": n}) for n in range(1, 7)])
    categories, _ = _told(schema.item, [{"category": n} for n in (6, 5)])
    assert encoder.profiles.trail[0].tolist() == [6, 5, 4, 3, *categories[:, 0].tolist()]


@pytest.mark.parametrize("mode", ["exposure", "implicit"])
def test_rates_in_a_row_are_those_of_all_before_it_drawn_towards_the_prior(mode: str) -> None:
    """Against their formula, over a minute: nothing has decayed yet. Of exposures, or of all events without any."""
    settings = Settings.model_validate({"mode": mode, "fields": FIELDS})
    schema = FeatureSchema.of(settings)
    encoder = Encoder(schema, new_profiles(settings.features, schema, 1.0, 0))
    events = [
        replace(event, time_ms=n, about_item={"category": event.item % 4})
        for n, event in enumerate(_stream(150, 9, negatives=0, keep=True, emit=True))
    ]
    encoded = _encode(encoder, events)
    shown = {settings.event_types.index("content_view")} if mode == "exposure" else set(range(3))
    for row, event in enumerate(events):
        before = Counter(other.kind for other in events[:row])
        n_before = sum(before[kind] for kind in shown)
        for name, own in (("item", event.item), ("item.category", event.item % 4)):
            like = [o.kind for o in events[:row] if own == (o.item if name == "item" else o.item % 4)]
            n_like = sum(kind in shown for kind in like)
            for kind, type_ in enumerate(settings.event_types):
                column = f"{name} rate {type_}"
                if mode == "exposure" and kind in shown:
                    assert column not in schema.layout.dense
                    continue
                prior = (before[kind] + 1) / (n_before + 3)
                rate = (like.count(kind) + 50 * prior) / (n_like + 50)
                expected = log(rate / prior) if like else 0.0
                found = encoded.rows.dense[row, schema.layout.dense.index(column)]
                assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("n_kept", [16, 1000])
def test_scoring_just_before_an_exposure_gives_the_row_that_training_got(n_kept: int) -> None:
    """Also while users and items are evicted; log_q, which only training reads, then differs by those evicted."""
    encoder = _encoder(n_kept, n_kept)
    for event in _stream(300, 5, n_users=40, n_items=80, emit=True, keep=True):
        before = save_profiles(encoder.profiles)
        before = {name: array.copy() for name, array in before.items()}
        scored, known_user, known = _score(encoder, event, [event.item])
        for name, array in save_profiles(encoder.profiles).items():
            np.testing.assert_array_equal(array, before[name], err_msg=f"scoring changed {name}")
        trained = _encode(encoder, [event])
        for name in ("ids", "history", "dense") + (("log_q",) if n_kept == 1000 else ()):
            np.testing.assert_array_equal(getattr(trained.rows, name)[0], getattr(scored, name)[0], err_msg=name)
        assert known[0] == (not trained.new_item[0]) == (event.item in before["items.ids"])
        assert known_user == (event.user in before["users.ids"])


def test_candidates_are_encoded_each_as_if_it_were_alone() -> None:
    encoder = _encoder()
    _encode(encoder, _stream(200, 6))
    event = replace(_stream(1, 7)[0], time_ms=1_700_003_000_000)
    items = [3, event.item, 999_999, 5]
    together, _, known = _score(encoder, event, items)
    assert known.tolist() == [True, True, False, True]
    for place, item in enumerate(items):
        alone = _score(encoder, event, [item])[0]
        for name in ("ids", "history", "dense", "log_q"):
            np.testing.assert_array_equal(getattr(together, name)[place], getattr(alone, name)[0])


def test_no_candidates_give_no_rows() -> None:
    rows, _, known = _score(_encoder(), Happened(), [])
    assert len(rows) == len(known) == 0


# -- sampled items and ranking


def test_sampled_items_are_known_ones_and_never_the_positive() -> None:
    encoder = _encoder(16, 16)
    for event in _stream(400, 8, n_items=60, emit=True, keep=True):
        encoded = _encode(encoder, [event])
        known = set(encoder.profiles.items.ids[encoder.profiles.live[: encoder.profiles.traffic[0]]].tolist())
        shown, sampled = encoded.rows.ids[~encoded.sampled], encoded.rows.ids[encoded.sampled]
        assert shown[:, 1].tolist() == [event.item]
        assert set(sampled[:, 1].tolist()) <= known - {event.item, 0}
        # Only the item is another one: user, context and their features are the exposure's.
        assert (sampled[:, 0] == event.user).all()
        of_user = 2 + encoder.schema.item.n_ids
        assert (sampled[:, of_user:] == shown[:, of_user:]).all()
        assert len(sampled) <= event.negatives


def test_where_no_other_item_is_known_nothing_is_sampled() -> None:
    encoded = _encode(_encoder(), [Happened(item=1), Happened(item=1, time_ms=1, negatives=3)])
    assert encoded.rows.ids[:, 1].tolist() == [1]
    assert encoded.sampled.tolist() == [False]


def test_log_q_of_a_row_is_the_frequency_with_which_its_item_is_sampled() -> None:
    encoder = _encoder(seed=2)
    _encode(encoder, _stream(300, 9, n_items=12))
    n_draws = 40_000
    encoded = _encode(encoder, [Happened(user=1, item=2, time_ms=1_700_010_000_000, negatives=n_draws)])
    n_known = int(encoder.profiles.traffic[0])
    log_q = dict(zip(encoded.rows.ids[:, 1].tolist(), encoded.rows.log_q.tolist(), strict=True))
    probability = {item: exp(value) / n_known for item, value in log_q.items()}
    assert len(probability) == n_known
    assert sum(probability.values()) == pytest.approx(1, rel=1e-5)
    items, counts = np.unique(encoded.rows.ids[encoded.sampled, 1], return_counts=True)
    for item, count in zip(items.tolist(), counts.tolist(), strict=True):
        p = probability[item] / (1 - probability[2])  # the positive itself is drawn anew
        assert abs(count / n_draws - p) < 4.5 * (p * (1 - p) / n_draws) ** 0.5, item


def test_a_group_ranks_the_item_among_others_that_are_known() -> None:
    encoder = _encoder(candidates=6, known_before_ranking=10)
    encoded = _encode(encoder, _stream(200, 10, rank=True))
    n_groups = len(encoded.ranked_event)
    assert n_groups > 100
    assert encoded.tie_breaks.shape == (n_groups, 6)
    ids = encoded.ranking.ids.reshape(n_groups, 6, -1)
    events = _stream(200, 10)
    for group, event in enumerate(encoded.ranked_event.tolist()):
        assert ids[group, 0, 1] == events[event].item
        assert events[event].item not in ids[group, 1:, 1]
        assert (ids[group, :, 0] == events[event].user).all()
        seen_so_far = {event.item for event in events[:event]}
        assert set(ids[group, :, 1].tolist()) <= seen_so_far
    assert ((encoded.tie_breaks >= 0) & (encoded.tie_breaks < 1)).all()


def test_looking_changes_nothing() -> None:
    ranked, plain = (_encoder(candidates=6, known_before_ranking=10) for _ in range(2))
    rows = _encode(ranked, _stream(200, 11, rank=True)).rows
    _assert_same_rows(rows, _encode(plain, _stream(200, 11)).rows)
    _assert_same_state(ranked, plain, but=("random",))
    assert ranked.profiles.random[0] == plain.profiles.random[0]


def test_nothing_is_ranked_before_enough_items_are_known() -> None:
    encoder = _encoder(candidates=3, known_before_ranking=4)
    events = [Happened(item=item, rank=True, time_ms=n) for n, item in enumerate((1, 2, 3, 3, 4, 4))]
    assert _encode(encoder, events).ranked_event.tolist() == [5]


# -- the rule for new items


def test_a_new_item_is_neither_ranked_nor_encoded_but_remembered() -> None:
    encoder = _encoder(candidates=2, known_before_ranking=2)
    _encode(encoder, [Happened(item=1), Happened(item=2)])
    encoded = _encode(encoder, [Happened(item=3, time_ms=n, negatives=2, rank=True) for n in (1, 2)])
    assert encoded.new_item.tolist() == [True, False]
    assert encoded.event.tolist() == [1, 1, 1]
    assert encoded.ranked_event.tolist() == [1]
    assert encoded.rows.history[0, 0].tolist() == [3, 2, 1]


def test_what_a_user_did_with_an_item_in_one_millisecond_does_not_tell_of_itself() -> None:
    """A film watched and liked is one row of a log: the like must not be told by the watching."""
    apart, at_once = _encoder(), _encoder()
    about = {"about_item": {"brand": "x"}}
    for encoder in (apart, at_once):
        _encode(encoder, [Happened(item=item, time_ms=item) for item in (1, 2, 3)])
    both = _encode(at_once, [Happened(item=2, time_ms=9, **about), Happened(item=2, time_ms=9, kind=1, **about)])
    one = _encode(apart, [Happened(item=2, time_ms=9, **about)])
    for row in (0, 1):
        np.testing.assert_array_equal(both.rows.dense[row], one.rows.dense[0])
        np.testing.assert_array_equal(both.rows.history[row], one.rows.history[0])
    _encode(apart, [Happened(item=2, time_ms=9, kind=1, **about)])
    _assert_same_state(apart, at_once)
    new = _encode(at_once, [Happened(item=7, time_ms=10), Happened(item=7, time_ms=10, kind=1)])
    assert new.new_item.tolist() == [True, True]


def test_a_new_item_that_outcomes_will_label_is_encoded_without_negatives() -> None:
    encoder = _encoder()
    _encode(encoder, [Happened(item=1), Happened(item=2)])
    encoded = _encode(encoder, [Happened(item=3, negatives=2, keep=True)])
    assert encoded.rows.ids[:, 1].tolist() == [3]
    assert encoded.sampled.tolist() == [False]
    assert encoded.new_item.tolist() == [True]


def test_an_event_that_is_only_remembered_gives_no_row() -> None:
    encoder = _encoder()
    assert len(_encode(encoder, [Happened(emit=False), Happened(emit=False, negatives=3)]).rows) == 0
    assert _encode(encoder, [Happened()]).rows.history[0, 0].tolist() == [1, 0, 0]


# -- attributes


def _ids(encoder: Encoder, rows: Rows, row: int = 0) -> dict[str, int]:
    return {name: slots[0] for name, slots in _slots(encoder, rows, row).items()}


def _slots(encoder: Encoder, rows: Rows, row: int = 0) -> dict[str, list[int]]:
    layout = encoder.schema.layout
    parts = np.split(rows.ids[row], np.cumsum(layout.slots)[:-1])
    return dict(zip(layout.fields, [part.tolist() for part in parts], strict=True))


def test_an_item_keeps_the_attributes_it_was_last_seen_with() -> None:
    encoder = _encoder()
    _encode(encoder, [Happened(item=1, about_item={"category": "shoes", "brand": "x", "price": 5})])
    _encode(encoder, [Happened(item=1, about_item={"brand": "y"}), Happened(item=2)])
    encoded = _encode(encoder, [Happened(item=2, negatives=1), Happened(item=1)])
    for row in (1, 2):  # as a sampled item, and as the event's own
        ids = _ids(encoder, encoded.rows, row)
        assert ids["item.category"] == hash_id("item.category", "shoes")
        assert ids["item.brand"] == hash_id("item.brand", "y")
        assert _dense(encoder, encoded.rows, row)["item.price missing"] == 0


def test_what_the_event_says_wins_over_what_is_known() -> None:
    encoder = _encoder()
    _encode(encoder, [Happened(about_item={"category": "a"}, about_user={"country": "de"})])
    rows = _encode(encoder, [Happened(about_item={"category": "b"}, about_user={"country": "fr"})]).rows
    ids = _ids(encoder, rows)
    assert ids["item.category"] == hash_id("item.category", "b")
    assert ids["user.country"] == hash_id("user.country", "fr")


def test_what_nobody_told_is_an_id_of_its_own() -> None:
    encoder = _encoder()
    rows = _encode(encoder, [Happened(keep=True)]).rows
    for name, (value, *others) in list(_slots(encoder, rows).items())[2:]:
        assert value == missing_id(name)
        assert set(others) <= {EMPTY}


def test_of_a_field_of_several_values_the_latest_ones_count_and_none_of_an_earlier_time_remains() -> None:
    encoder = _encoder()
    _encode(encoder, [Happened(item=1, about_item={"tags": ["a", "b", "c"]}, about_user={"about": "Red Shoes, red!"})])
    one, two, red, shoes = (
        *(hash_id("item.tags", tag) for tag in ("d", "b")),
        *(hash_id("user.about", word) for word in ("red", "shoes")),
    )
    rows = _encode(encoder, [Happened(item=1, time_ms=1, about_item={"tags": ["d", "b"]}), Happened(time_ms=2)]).rows
    for row in (0, 1):
        slots = _slots(encoder, rows, row)
        assert slots["item.tags"] == [one, two, EMPTY]
        assert slots["user.about"] == [red, shoes]
    rows = _encode(encoder, [Happened(item=1, time_ms=3, about_item={"tags": []})]).rows
    assert _slots(encoder, rows)["item.tags"] == [missing_id("item.tags"), EMPTY, EMPTY]


def test_context_is_of_the_moment_only() -> None:
    encoder = _encoder()
    _encode(encoder, [Happened(context={"device": "phone", "hour": 3})])
    rows = _encode(encoder, [Happened()]).rows
    assert _ids(encoder, rows)["context.device"] == missing_id("context.device")
    assert _dense(encoder, rows)["context.hour missing"] == 1


@pytest.mark.parametrize("source", ["item.price", "user.age", "context.hour"])
def test_numbers_are_standardised_clipped_and_flagged_where_missing(source: str) -> None:
    encoder = _encoder()
    owner, key = source.split(".")
    name = {"item": "about_item", "user": "about_user", "context": "context"}[owner]

    def told(value: float, **changes: Any) -> dict[str, float]:
        encoded = _encode(encoder, [Happened(keep=True, **{name: {key: value}}, **changes)])
        return _dense(encoder, encoded.rows)

    assert told(7.0)[f"{source} value"] == 0  # nothing to compare it with
    values = [7.0, 1.0, 4.0, 10.0, 6.0]
    for value in values[1:]:
        told(value)
    found = told(9.0)
    assert found[f"{source} value"] == pytest.approx((9 - np.mean(values)) / np.std(values), rel=1e-5)
    assert found[f"{source} missing"] == 0
    assert [told(value)[f"{source} value"] for value in (1e9, -1e17)] == [5, -5]
    unknown = told(nan, user=77, item=88)
    assert (unknown[f"{source} value"], unknown[f"{source} missing"]) == (0, 1)


# -- state


@pytest.mark.parametrize("n_kept", [16, 1000])
def test_an_encoder_over_loaded_profiles_goes_on_like_the_first_one(n_kept: int) -> None:
    first, second = _encoder(n_kept, n_kept, seed=1), _encoder(n_kept, n_kept, seed=2)
    events = _stream(400, 12, n_users=40, n_items=80)
    _encode(first, events[:250])
    load_profiles(second.profiles, {name: array.copy() for name, array in save_profiles(first.profiles).items()})
    _assert_same_rows(_encode(second, events[250:]).rows, _encode(first, events[250:]).rows)
    _assert_same_state(second, first)


def test_what_one_request_showed_is_encoded_as_the_request_was_scored_before_any_of_it() -> None:
    """A worker scores all candidates of a request before the first of them is shown."""
    encoder = _encoder()
    for k, item in enumerate((11, 12, 13, 11, 14)):
        _encode(encoder, [Happened(item=item, time_ms=1000 * k, about_item={"category": f"c{item}"})])
    shown = [
        Happened(item=item, time_ms=9000, list_id=7, negatives=2, context={"hour": hour})
        for hour, item in enumerate((12, 11, 14))
    ]
    scored = [_score(encoder, event, [event.item])[0] for event in shown]
    encoded = _encode(encoder, shown)
    own = np.flatnonzero(~encoded.sampled)
    for row, expected in zip(own, scored, strict=True):
        for name in ("ids", "history", "dense"):
            np.testing.assert_array_equal(getattr(encoded.rows, name)[row], getattr(expected, name)[0])
    assert len(np.unique(encoded.rows.history, axis=0)) == 1
    later = _encode(encoder, [Happened(item=13, time_ms=9000)])
    assert later.rows.history[0, 0].tolist() == [14, 11, 12]
