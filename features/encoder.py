"""The encoder: from profiles and events to rows, the same code for training and for scoring.

Order, event by event in stream order (DESIGN §2):

1. What the event itself says of its user and item is learned (a request carries the same attributes).
2. The exposure is encoded from what is known by now, and so are the items sampled against it.
3. The event is remembered: history, recent traffic, counters. Exposures of one request, and what a user did with an
   item in one millisecond, are remembered after the last of them is encoded: none tells of another before it happens,
   and a request for scores knows none of its own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Float32s, Int64s, Rows
from features.compiled import compiled, compiled_loop
from features.foresight import foresee
from features.idmap import Integer, find
from features.profiles import (
    RANKING,
    Profiles,
    item_row,
    learn_attributes,
    learn_number,
    remember,
    sample_item,
    uniform,
    user_row,
)
from features.rows import RowSpace, Viewer, copy_user, encode_item, encode_sampled, encode_user, total
from features.schema import FeatureSchema

KNOWN_BEFORE_RANKING = 200
"""Items that must be known before a ranking group can be drawn."""
_TRIES = 8


class EventColumns(NamedTuple):
    """A run of N events, as columns, in stream order.

    ``emit``: 0 only remembered, 1 encoded; only if its item was seen before, unless ``keep`` says that it is needed
    anyway (DESIGN §7). ``negatives``: items to sample against it. ``rank``: 1 to rank its item among others.
    ``list_id``: the request that it was shown in; 0: none.
    """

    kind: Int64s
    user: Int64s
    item: Int64s
    time_ms: Int64s
    emit: Int64s
    keep: Int64s
    negatives: Int64s
    rank: Int64s
    list_id: Int64s
    item_attributes: Int64s
    item_numbers: Float32s
    user_attributes: Int64s
    user_numbers: Float32s
    context_attributes: Int64s
    context_numbers: Float32s


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
    :param known_before_ranking: see :data:`KNOWN_BEFORE_RANKING`.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        profiles: Profiles,
        candidates: int = 100,
        known_before_ranking: int = KNOWN_BEFORE_RANKING,
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
            np.zeros(len(self.schema.event_types), np.float32),
            self._trails(),
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
            np.zeros(len(self.schema.event_types), np.float32),
            self._trails(),
        )
        return _cut(out, len(items)), bool(known_user), known

    def _totals(self) -> Float32s:
        return np.zeros(self.profiles.trail.shape[1], np.float32)

    def _trails(self) -> Float32s:
        return np.zeros((len(self.schema.followed), 2), np.float32)

    def _empty(self, n_rows: int) -> RowSpace:
        layout = self.schema.layout
        return RowSpace(
            np.empty((n_rows, layout.n_ids), np.int64),
            np.empty((n_rows, len(layout.event_types), layout.history_length), np.int64),
            np.empty((n_rows, len(layout.dense)), np.float32),
            np.empty(n_rows, np.float32),
        )


def _cut(out: RowSpace, n_rows: int) -> Rows:
    return Rows(out.ids[:n_rows], out.history[:n_rows], out.dense[:n_rows], out.log_q[:n_rows])


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
    """One request, or what a user did with an item in one millisecond: a film watched and liked is one row of a log."""
    return bool(
        events.time_ms[left] == events.time_ms[right]
        and events.user[left] == events.user[right]
        and (
            events.item[left] == events.item[right]
            or (events.list_id[left] != 0 and events.list_id[left] == events.list_id[right])
        )
    )


@compiled_loop
def _encode_events(
    profiles: Profiles,
    events: EventColumns,
    interests: Integer,
    known_before_ranking: Integer,
    out: RowSpace,
    event: Int64s,
    sampled: NDArray[np.bool_],
    ranking: RowSpace,
    ranked_event: Int64s,
    ties: Float32s,
    new_item: NDArray[np.bool_],
    totals: Float32s,
    priors: Float32s,
    trails: Float32s,
) -> tuple[int, int]:
    """The loop over the events; returns the number of rows and of ranking groups."""
    n_rows = 0
    n_groups = 0
    instant = 0  # its first event
    of_viewer = -1  # its first row
    n_item = events.item_attributes.shape[1]
    candidates = ties.shape[1]
    for e in range(len(events.kind)):
        foresee(profiles, events.user, events.item, events.item_attributes, e, interests)
        user, item, now_ms = events.user[e], events.item[e], events.time_ms[e]
        goes_on = e > 0 and _same_instant(events, e - 1, e)
        if goes_on and item == events.item[e - 1]:
            new_item[e] = new_item[e - 1]
        else:
            new_item[e] = find(profiles.items.keys, profiles.items.rows, item) < 0
        u_row = user_row(profiles, user, now_ms)
        i_row = item_row(profiles, item, now_ms)
        learn_attributes(profiles.users, u_row, events.user_attributes[e], events.user_numbers[e])
        learn_attributes(profiles.items, i_row, events.item_attributes[e], events.item_numbers[e])
        viewer = Viewer(user, u_row, totals, priors, trails)
        if not goes_on:
            instant, of_viewer = e, -1
            total(profiles, viewer, now_ms)

        # A positive whose item is new would teach that rare means relevant: sampled items are never new.
        comparable = not new_item[e]
        if events.rank[e] == 1 and comparable and profiles.traffic[0] >= known_before_ranking:
            first = n_groups * candidates
            at = encode_user(
                profiles,
                viewer,
                now_ms,
                events.user_attributes[e],
                events.user_numbers[e],
                events.context_attributes[e],
                events.context_numbers[e],
                n_item,
                ranking,
                -1,
                first,
            )
            encode_item(
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
                encode_sampled(profiles, viewer, row, now_ms, interests, ranking, first, first + c, at)
                ties[n_groups, c] = uniform(profiles.random, RANKING)
            ranked_event[n_groups] = e
            n_groups += 1

        if events.emit[e] == 1 and (comparable or events.keep[e] == 1):
            first = n_rows
            at = encode_user(
                profiles,
                viewer,
                now_ms,
                events.user_attributes[e],
                events.user_numbers[e],
                events.context_attributes[e],
                events.context_numbers[e],
                n_item,
                out,
                of_viewer,
                first,
            )
            of_viewer = first if of_viewer < 0 else of_viewer
            encode_item(
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
                        encode_sampled(profiles, viewer, row, now_ms, interests, out, first, n_rows, at)
                        event[n_rows], sampled[n_rows] = e, True
                        n_rows += 1

        if e + 1 < len(events.kind) and _same_instant(events, e, e + 1):
            continue
        for k in range(instant, e + 1):
            _learn_numbers(profiles, events.item_numbers[k], events.user_numbers[k], events.context_numbers[k])
            i_row = item_row(profiles, events.item[k], now_ms)
            remember(profiles, user, u_row, events.item[k], i_row, events.kind[k], now_ms, interests)
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
    out: RowSpace,
    known: NDArray[np.bool_],
    totals: Float32s,
    priors: Float32s,
    trails: Float32s,
) -> bool | np.bool_:
    u_row = find(profiles.users.keys, profiles.users.rows, user)
    if len(items) == 0:
        return u_row >= 0
    viewer = Viewer(user, u_row, totals, priors, trails)
    total(profiles, viewer, now_ms)
    at = encode_user(
        profiles,
        viewer,
        now_ms,
        user_attributes,
        user_numbers,
        context_attributes,
        context_numbers,
        item_attributes.shape[1],
        out,
        -1,
        0,
    )
    for n in range(len(items)):
        if n > 0:
            copy_user(out, 0, n, at)
        i_row = find(profiles.items.keys, profiles.items.rows, items[n])
        known[n] = i_row >= 0
        encode_item(
            profiles, viewer, i_row, items[n], now_ms, item_attributes[n], item_numbers[n], interests, out, n, at
        )
    return bool(u_row >= 0)
