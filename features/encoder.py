"""The encoder: from profiles and events to rows, the same code for training and for scoring.

Order, event by event in stream order (DESIGN §2):

1. What the event itself says of its user and item is learned (a request carries the same attributes).
2. The exposure is encoded from what is known by now, and so are the items sampled against it.
3. The event is remembered: history, recent traffic, counters; all events of one user, item and millisecond after the
   last of them is encoded, since none of them tells of another before it happens.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Float32s, Int64s, Rows
from features.compiled import compiled, compiled_loop
from features.counters import pair_key, read
from features.covisits import count as count_of
from features.covisits import unordered
from features.fastmath import log1p
from features.idmap import Integer, Real, find
from features.profiles import (
    RANKING,
    Float64s,
    Profiles,
    item_row,
    learn_attributes,
    learn_number,
    log_q,
    remember,
    sample_item,
    uniform,
    user_row,
)
from features.schema import FeatureSchema

_CLIP = 5.0
_TRIES = 8


class EventColumns(NamedTuple):
    """A run of N events, as columns, in stream order.

    ``emit``: 0 only remembered, 1 encoded; only if its item was seen before, unless ``keep`` says that it is needed
    anyway (DESIGN §7). ``negatives``: items to sample against it. ``rank``: 1 to rank its item among others.
    """

    kind: Int64s
    user: Int64s
    item: Int64s
    time_ms: Int64s
    emit: Int64s
    keep: Int64s
    negatives: Int64s
    rank: Int64s
    item_attributes: Int64s
    item_numbers: Float32s
    user_attributes: Int64s
    user_numbers: Float32s
    context_attributes: Int64s
    context_numbers: Float32s


class _Out(NamedTuple):
    ids: Int64s
    history: Int64s
    dense: Float32s
    log_q: Float32s


class _Viewer(NamedTuple):
    """The user that rows are encoded for; row -1: not known."""

    id: Integer
    row: Integer
    totals: Float32s  # [M], how often each item of the trail was counted together with another


@dataclass(frozen=True, slots=True)
class Encoded:
    """What :func:`Encoder.encode` made of a run of events.

    :param rows: the encoded examples.
    :param event: shape ``[B]``, index of the event that each row belongs to.
    :param sampled: shape ``[B]``, true for a sampled item.
    :param ranking: ``G × candidates`` rows, the event's own item first in each group.
    :param ranked_event: shape ``[G]``.
    :param tie_breaks: shape ``[G, candidates]``, random numbers in [0, 1).
    :param new_item: shape ``[events]``, the event's item had never been seen.
    """

    rows: Rows
    event: Int64s
    sampled: NDArray[np.bool_]
    ranking: Rows
    ranked_event: Int64s
    tie_breaks: Float32s
    new_item: NDArray[np.bool_]


class Encoder:
    """Encodes with one schema over one set of profiles.

    :param candidates: size of a ranking group, the event's own item included.
    :param known_before_ranking: items that must be known before a group can be drawn.
    """

    def __init__(
        self, schema: FeatureSchema, profiles: Profiles, candidates: int = 100, known_before_ranking: int = 200
    ) -> None:
        self.schema = schema
        self.profiles = profiles
        self._candidates = candidates
        self._known_before_ranking = known_before_ranking

    def encode(self, events: EventColumns) -> Encoded:
        """Encode and remember a run of events."""
        most = int((events.emit * (1 + events.negatives)).sum())
        groups = int(events.rank.sum())
        out, ranking = self._empty(most), self._empty(groups * self._candidates)
        event, sampled = np.zeros(most, np.int64), np.zeros(most, np.bool_)
        ranked_event, ties = np.zeros(groups, np.int64), np.zeros((groups, self._candidates), np.float32)
        new_item = np.zeros(len(events.kind), np.bool_)
        n_rows, n_groups = _encode_events(
            self.profiles,
            events,
            self.schema.interests,
            self._known_before_ranking,
            out,
            event,
            sampled,
            ranking,
            ranked_event,
            ties,
            new_item,
            self._totals(),
        )
        return Encoded(
            _cut(out, n_rows),
            event[:n_rows],
            sampled[:n_rows],
            _cut(ranking, n_groups * self._candidates),
            ranked_event[:n_groups],
            ties[:n_groups],
            new_item,
        )

    def encode_candidates(
        self,
        user: int,
        items: Int64s,
        now_ms: int,
        user_attributes: Int64s,
        user_numbers: Float32s,
        context_attributes: Int64s,
        context_numbers: Float32s,
        item_attributes: Int64s,
        item_numbers: Float32s,
    ) -> tuple[Rows, bool, NDArray[np.bool_]]:
        """Encode one user against N items without remembering anything; attributes given here win over known ones.

        :returns: the rows; whether the user is known; shape ``[N]``, which items are known.
        """
        out = self._empty(len(items))
        known = np.zeros(len(items), np.bool_)
        known_user = _encode_candidates(
            self.profiles,
            user,
            items,
            now_ms,
            user_attributes,
            user_numbers,
            context_attributes,
            context_numbers,
            item_attributes,
            item_numbers,
            self.schema.interests,
            out,
            known,
            self._totals(),
        )
        return _cut(out, len(items)), bool(known_user), known

    def _totals(self) -> Float32s:
        return np.zeros(self.profiles.trail.shape[1], np.float32)

    def _empty(self, n_rows: int) -> _Out:
        layout = self.schema.layout
        return _Out(
            np.empty((n_rows, len(layout.fields)), np.int64),
            np.empty((n_rows, len(layout.event_types), layout.history_length), np.int64),
            np.empty((n_rows, len(layout.dense)), np.float32),
            np.empty(n_rows, np.float32),
        )


def _cut(out: _Out, n_rows: int) -> Rows:
    return Rows(out.ids[:n_rows], out.history[:n_rows], out.dense[:n_rows], out.log_q[:n_rows])


@compiled
def _number(moments: Float64s, value: Real, out: Float32s) -> None:
    """Standardised and clipped to ±5, then 1 where missing: unknown is not zero."""
    if np.isnan(value):
        out[0], out[1] = 0.0, 1.0
        return
    spread = np.sqrt(moments[2] / moments[0]) if moments[0] > 1.0 else 0.0
    out[0] = min(max((value - moments[1]) / spread, -_CLIP), _CLIP) if spread > 1e-12 else 0.0
    out[1] = 0.0


@compiled
def _pick(own: Integer, known: Integer, missing: Integer) -> Integer:
    if own != 0:
        return own
    return known if known != 0 else missing


@compiled
def _encode_user(
    profiles: Profiles,
    viewer: _Viewer,
    now_ms: Integer,
    attributes: Int64s,
    numbers: Float32s,
    context_attributes: Int64s,
    context_numbers: Float32s,
    n_item: Integer,
    out: _Out,
    to: Integer,
) -> Integer:
    """The part of a row that does not depend on the item; returns how many dense columns it took."""
    u_row = viewer.row
    out.ids[to, 0] = viewer.id
    first = 2 + n_item
    for k in range(len(attributes)):
        known = profiles.users.attributes[u_row, k] if u_row >= 0 else 0
        out.ids[to, first + k] = _pick(attributes[k], known, profiles.missing[first + k])
    first += len(attributes)
    for k in range(len(context_attributes)):
        out.ids[to, first + k] = _pick(context_attributes[k], 0, profiles.missing[first + k])
    for y in range(out.history.shape[1]):
        for h in range(out.history.shape[2]):
            out.history[to, y, h] = profiles.history[u_row, y, h] if u_row >= 0 else 0
    width: int = profiles.values.counts.shape[2] * profiles.values.counts.shape[3] + 1
    dense = out.dense[to]
    read(profiles.values, viewer.id, now_ms, profiles.half_lives_ms, dense[:width])
    at = width
    moment = profiles.items.numbers.shape[1]
    for k in range(len(numbers)):
        value = numbers[k]
        if np.isnan(value) and u_row >= 0:
            value = profiles.users.numbers[u_row, k]
        _number(profiles.moments[moment + k], value, dense[at : at + 2])
        at += 2
    moment += len(numbers)
    for k in range(len(context_numbers)):
        _number(profiles.moments[moment + k], context_numbers[k], dense[at : at + 2])
        at += 2
    return at


@compiled
def _total(profiles: Profiles, viewer: _Viewer, now_ms: Integer) -> None:
    """Fill the viewer's totals, which do not depend on the item."""
    for m in range(len(viewer.totals)):
        item = profiles.trail[viewer.row, m] if viewer.row >= 0 else 0
        viewer.totals[m] = count_of(profiles.covisits, item, now_ms) if item != 0 else 0.0


@compiled
def _encode_covisits(profiles: Profiles, viewer: _Viewer, item: Integer, now_ms: Integer, out: Float32s) -> None:
    """How often the item goes with those of the user's trail; square roots, since the cosines are small."""
    count_sum = np.float32(0.0)
    cosine_sum = np.float32(0.0)
    cosine_max = np.float32(0.0)
    cosine_latest = np.float32(0.0)
    own = np.float32(-1.0)
    for m in range(len(viewer.totals)):
        if viewer.totals[m] <= 0.0 or profiles.trail[viewer.row, m] == item:
            continue
        count = count_of(profiles.covisits, unordered(profiles.trail[viewer.row, m], item), now_ms)
        if count <= 0.0:
            continue
        if own < 0.0:
            own = count_of(profiles.covisits, item, now_ms)
        cosine = count / np.sqrt(viewer.totals[m] * max(own, count))
        count_sum += count
        cosine_sum += cosine
        cosine_max = max(cosine_max, cosine)
        if m == 0:
            cosine_latest = cosine
    out[0], out[1] = log1p(count_sum), np.sqrt(cosine_sum)
    out[2], out[3] = np.sqrt(cosine_max), np.sqrt(cosine_latest)


@compiled
def _encode_item(
    profiles: Profiles,
    viewer: _Viewer,
    i_row: Integer,
    item: Integer,
    now_ms: Integer,
    attributes: Int64s,
    numbers: Float32s,
    interests: Integer,
    out: _Out,
    to: Integer,
    at: Integer,
) -> None:
    """The rest of a row, from dense column ``at`` on."""
    out.ids[to, 1] = item
    for k in range(len(attributes)):
        known = profiles.items.attributes[i_row, k] if i_row >= 0 else 0
        out.ids[to, 2 + k] = _pick(attributes[k], known, profiles.missing[2 + k])
    width: int = profiles.values.counts.shape[2] * profiles.values.counts.shape[3] + 1
    dense = out.dense[to]
    read(profiles.pairs, pair_key(viewer.id, item), now_ms, profiles.half_lives_ms, dense[at : at + width])
    for k in range(interests):
        value = out.ids[to, 2 + k]
        start = at + width * (1 + k)
        read(profiles.pairs, pair_key(viewer.id, value), now_ms, profiles.half_lives_ms, dense[start : start + width])
    at += width * (1 + interests)
    read(profiles.values, item, now_ms, profiles.half_lives_ms, dense[at : at + width])
    for k in range(interests):
        start = at + width * (1 + k)
        read(profiles.values, out.ids[to, 2 + k], now_ms, profiles.half_lives_ms, dense[start : start + width])
    at += width * (1 + interests)
    if len(viewer.totals) > 0:
        _encode_covisits(profiles, viewer, item, now_ms, dense[at : at + 4])
        at += 4
    for k in range(len(numbers)):
        value = numbers[k]
        if np.isnan(value) and i_row >= 0:
            value = profiles.items.numbers[i_row, k]
        _number(profiles.moments[k], value, dense[at : at + 2])
        at += 2
    out.log_q[to] = log_q(profiles, i_row)


@compiled
def _copy_user(out: _Out, of: Integer, to: Integer, at: Integer) -> None:
    """What :func:`_encode_user` made of row ``of``, for row ``to``."""
    for k in range(out.ids.shape[1]):
        out.ids[to, k] = out.ids[of, k]
    for y in range(out.history.shape[1]):
        for h in range(out.history.shape[2]):
            out.history[to, y, h] = out.history[of, y, h]
    for k in range(at):
        out.dense[to, k] = out.dense[of, k]


@compiled
def _encode_sampled(
    profiles: Profiles,
    viewer: _Viewer,
    row: Integer,
    now_ms: Integer,
    interests: Integer,
    out: _Out,
    first: Integer,
    to: Integer,
    at: Integer,
) -> None:
    """A known item in the place of the event's own: the user's part is copied from row ``first``."""
    _copy_user(out, first, to, at)
    _encode_item(
        profiles,
        viewer,
        row,
        profiles.items.ids[row],
        now_ms,
        profiles.items.attributes[row],
        profiles.items.numbers[row],
        interests,
        out,
        to,
        at,
    )


@compiled
def _learn_numbers(profiles: Profiles, item: Float32s, user: Float32s, context: Float32s) -> None:
    for k in range(len(item)):
        learn_number(profiles.moments[k], item[k])
    for k in range(len(user)):
        learn_number(profiles.moments[len(item) + k], user[k])
    for k in range(len(context)):
        learn_number(profiles.moments[len(item) + len(user) + k], context[k])


@compiled
def _same_instant(events: EventColumns, left: Integer, right: Integer) -> bool:
    """What a user did with an item in one millisecond: a film watched and liked is one row of a log."""
    return bool(
        events.time_ms[left] == events.time_ms[right]
        and events.user[left] == events.user[right]
        and events.item[left] == events.item[right]
    )


@compiled_loop
def _encode_events(
    profiles: Profiles,
    events: EventColumns,
    interests: Integer,
    known_before_ranking: Integer,
    out: _Out,
    event: Int64s,
    sampled: NDArray[np.bool_],
    ranking: _Out,
    ranked_event: Int64s,
    ties: Float32s,
    new_item: NDArray[np.bool_],
    totals: Float32s,
) -> tuple[int, int]:
    """The loop over the events; returns the number of rows and of ranking groups."""
    n_rows = 0
    n_groups = 0
    instant = 0
    n_item = events.item_attributes.shape[1]
    candidates = ties.shape[1]
    for e in range(len(events.kind)):
        user, item, now_ms = events.user[e], events.item[e], events.time_ms[e]
        if e > 0 and _same_instant(events, e - 1, e):
            new_item[e] = new_item[e - 1]
        else:
            instant = e
            new_item[e] = find(profiles.items.keys, profiles.items.rows, item) < 0
        u_row = user_row(profiles, user, now_ms)
        i_row = item_row(profiles, item, now_ms)
        learn_attributes(profiles.users, u_row, events.user_attributes[e], events.user_numbers[e])
        learn_attributes(profiles.items, i_row, events.item_attributes[e], events.item_numbers[e])
        viewer = _Viewer(user, u_row, totals)
        _total(profiles, viewer, now_ms)

        # A positive whose item is new would teach that rare means relevant: sampled items are never new.
        comparable = not new_item[e]
        if events.rank[e] == 1 and comparable and profiles.traffic[0] >= known_before_ranking:
            first = n_groups * candidates
            at = _encode_user(
                profiles,
                viewer,
                now_ms,
                events.user_attributes[e],
                events.user_numbers[e],
                events.context_attributes[e],
                events.context_numbers[e],
                n_item,
                ranking,
                first,
            )
            _encode_item(
                profiles,
                viewer,
                i_row,
                item,
                now_ms,
                events.item_attributes[e],
                events.item_numbers[e],
                interests,
                ranking,
                first,
                at,
            )
            ties[n_groups, 0] = uniform(profiles.random, RANKING)
            for c in range(1, candidates):
                row = i_row
                while row == i_row:
                    row = np.int64(profiles.live[np.int64(uniform(profiles.random, RANKING) * profiles.traffic[0])])
                _encode_sampled(profiles, viewer, row, now_ms, interests, ranking, first, first + c, at)
                ties[n_groups, c] = uniform(profiles.random, RANKING)
            ranked_event[n_groups] = e
            n_groups += 1

        if events.emit[e] == 1 and (comparable or events.keep[e] == 1):
            first = n_rows
            at = _encode_user(
                profiles,
                viewer,
                now_ms,
                events.user_attributes[e],
                events.user_numbers[e],
                events.context_attributes[e],
                events.context_numbers[e],
                n_item,
                out,
                first,
            )
            _encode_item(
                profiles,
                viewer,
                i_row,
                item,
                now_ms,
                events.item_attributes[e],
                events.item_numbers[e],
                interests,
                out,
                first,
                at,
            )
            event[n_rows], sampled[n_rows] = e, False
            n_rows += 1
            if comparable:
                for _ in range(events.negatives[e]):
                    row = i_row
                    for _try in range(_TRIES):
                        if row == i_row:
                            row = sample_item(profiles)
                    if row != i_row:
                        _encode_sampled(profiles, viewer, row, now_ms, interests, out, first, n_rows, at)
                        event[n_rows], sampled[n_rows] = e, True
                        n_rows += 1

        if e + 1 < len(events.kind) and _same_instant(events, e, e + 1):
            continue
        for k in range(instant, e + 1):
            _learn_numbers(profiles, events.item_numbers[k], events.user_numbers[k], events.context_numbers[k])
            remember(profiles, user, u_row, item, i_row, events.kind[k], now_ms, interests)
    return n_rows, n_groups


@compiled_loop
def _encode_candidates(
    profiles: Profiles,
    user: Integer,
    items: Int64s,
    now_ms: Integer,
    user_attributes: Int64s,
    user_numbers: Float32s,
    context_attributes: Int64s,
    context_numbers: Float32s,
    item_attributes: Int64s,
    item_numbers: Float32s,
    interests: Integer,
    out: _Out,
    known: NDArray[np.bool_],
    totals: Float32s,
) -> bool | np.bool_:
    u_row = find(profiles.users.keys, profiles.users.rows, user)
    if len(items) == 0:
        return u_row >= 0
    viewer = _Viewer(user, u_row, totals)
    _total(profiles, viewer, now_ms)
    at = _encode_user(
        profiles,
        viewer,
        now_ms,
        user_attributes,
        user_numbers,
        context_attributes,
        context_numbers,
        item_attributes.shape[1],
        out,
        0,
    )
    for n in range(len(items)):
        if n > 0:
            _copy_user(out, 0, n, at)
        i_row = find(profiles.items.keys, profiles.items.rows, items[n])
        known[n] = i_row >= 0
        _encode_item(
            profiles, viewer, i_row, items[n], now_ms, item_attributes[n], item_numbers[n], interests, out, n, at
        )
    return bool(u_row >= 0)
