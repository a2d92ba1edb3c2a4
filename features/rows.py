"""One row: what is known of a user and an item, as the columns of :class:`contracts.batch.Rows`. Compiled.

The part of the user is written once and copied to the rows of the items beside it. Nothing here changes what is known.
"""

from typing import NamedTuple

import numpy as np

from contracts.batch import Float32s, Int64s
from features.compiled import compiled
from features.counters import pair_key, rates, read, shares
from features.covisits import chance, unordered
from features.covisits import count as count_of
from features.fastmath import log, log1p
from features.idmap import Integer, Real
from features.profiles import CLIP, Float64s, Profiles, log_q

N_COVISITS = 6
_LEAST_LIFT, _MOST_LIFT = np.float32(1e-4), np.float32(1e4)
"""Of one pair: the product of sixty-four, the most a trail holds, stays within a double."""
_LEAST_ODDS, _MOST_ODDS = 1e-37, 1e37
"""Of a trail: within a normal float32."""


class RowSpace(NamedTuple):
    """Where rows are written: the arrays of :class:`contracts.batch.Rows`, which compiled code cannot take itself."""

    ids: Int64s
    history: Int64s
    dense: Float32s
    log_q: Float32s


class Viewer(NamedTuple):
    """The user that rows are encoded for; row -1: not known."""

    id: Integer
    row: Integer
    totals: Float32s  # [M + I·V], how often each item or value of the trails was chosen
    priors: Float32s  # [Y], share of each type among all events
    trails: Float32s  # [1 + I, 2], of items and each field's values: chance to meet, popularity of those in the trail


@compiled
def _number(moments: Float64s, value: Real, out: Float32s) -> None:
    """Standardised and clipped to ±5, then 1 where missing: unknown is not zero."""
    if np.isnan(value):
        out[0], out[1] = 0.0, 1.0
        return
    spread = np.sqrt(moments[2] / moments[0]) if moments[0] > 1.0 else 0.0
    out[0] = min(max((value - moments[1]) / spread, -CLIP), CLIP) if spread > 1e-12 else 0.0
    out[1] = 0.0


@compiled
def _pick(own: Integer, known: Integer, missing: Integer) -> Integer:
    if own != 0:
        return own
    return known if known != 0 else missing


@compiled
def encode_user(
    profiles: Profiles,
    viewer: Viewer,
    now_ms: Integer,
    attributes: Int64s,
    numbers: Float32s,
    context_attributes: Int64s,
    context_numbers: Float32s,
    n_item: Integer,
    out: RowSpace,
    of: Integer,
    to: Integer,
) -> Integer:
    """The part of a row that does not depend on the item; returns how many dense columns it took.

    :param of: a row of the same viewer at the same time, whose history and counters are copied; -1: there is none.
    """
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
            if of >= 0:
                out.history[to, y, h] = out.history[of, y, h]
            else:
                out.history[to, y, h] = profiles.history[u_row, y, h] if u_row >= 0 else 0
    width: int = profiles.values.counts.shape[2] * profiles.values.counts.shape[3] + 1
    dense = out.dense[to]
    if of >= 0:
        for k in range(width):
            dense[k] = out.dense[of, k]
    else:
        read(profiles.values, viewer.id, now_ms, profiles.half_lives_ms, dense[:width])
    at = width
    if len(viewer.totals) > 0:
        for which in range(len(viewer.trails)):
            dense[at] = viewer.trails[which, 1]
            at += 1
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
def _popularity(totals: Float32s) -> np.float32:
    """Mean log(1 + times chosen) of what a trail holds: whether its user goes for what all do; 0: it holds nothing."""
    total_sum = np.float32(0.0)
    length = 0
    for m in range(len(totals)):
        if totals[m] > 0.0:
            total_sum += log1p(totals[m])
            length += 1
    return total_sum / np.float32(max(length, 1))


@compiled
def total(profiles: Profiles, viewer: Viewer, now_ms: Integer) -> None:
    """Fill in what of the viewer's trails does not depend on the item."""
    for m in range(len(viewer.totals)):
        item = profiles.trail[viewer.row, m] if viewer.row >= 0 else 0
        viewer.totals[m] = count_of(profiles.covisits, item, now_ms) if item != 0 else 0.0
    if len(viewer.totals) > 0:
        for which in range(len(viewer.trails)):
            viewer.trails[which, 0] = chance(profiles.covisits, which, now_ms)
            viewer.trails[which, 1] = _popularity(viewer.totals[profiles.trails[which] : profiles.trails[which + 1]])
    shares(profiles.values, profiles.missing[1], now_ms, profiles.half_lives_ms, profiles.exposure[0], viewer.priors)


@compiled
def _encode_covisits(
    profiles: Profiles, viewer: Viewer, which: Integer, one: Integer, now_ms: Integer, out: Float32s
) -> None:
    """How often an item, or a value, goes with those of the user's trail; square roots, since the cosines are small.

    The last two are the log of how much likelier it is after such a trail, if each of the trail told by itself (naive
    Bayes): Σ log((met + 1) / (met by chance + 1)), over the root of the trail's length; then the same of the trail's
    latest quarter. A cosine tells nothing of two that never met; of two that are chosen often that is telling.
    """
    first, end = profiles.trails[which], profiles.trails[which + 1]
    count_sum = np.float32(0.0)
    cosine_sum = np.float32(0.0)
    cosine_max = np.float32(0.0)
    cosine_latest = np.float32(0.0)
    latest = first + max((end - first) // 4, 1)
    lift, unmet, lift_latest, unmet_latest = 1.0, 1.0, 1.0, 1.0
    own = np.float32(-1.0)
    by_chance = np.float32(0.0)
    for m in range(first, end):
        if m == latest:
            lift_latest, unmet_latest = lift, unmet
        if viewer.totals[m] <= 0.0:  # so are all where the viewer is not known
            continue
        other = profiles.trail[viewer.row, m]
        if other == one:
            continue
        if own < 0.0:
            own = count_of(profiles.covisits, one, now_ms)
            by_chance = own * viewer.trails[which, 0]
        count = count_of(profiles.covisits, unordered(other, one), now_ms)
        expected = viewer.totals[m] * by_chance + np.float32(1.0)
        if count <= 0.0:
            unmet *= np.float64(min(expected, _MOST_LIFT))
            continue
        lift *= np.float64(min(max((count + np.float32(1.0)) / expected, _LEAST_LIFT), _MOST_LIFT))
        cosine = count / np.sqrt(max(viewer.totals[m], count) * max(own, count))
        count_sum += count
        cosine_sum += cosine
        cosine_max = max(cosine_max, cosine)
        if m == first:
            cosine_latest = cosine
    out[0], out[1] = log1p(count_sum), np.sqrt(cosine_sum)
    out[2], out[3] = np.sqrt(cosine_max), np.sqrt(cosine_latest)
    if own < 0.0:
        out[4], out[5] = 0.0, 0.0
        return
    if latest >= end:
        lift_latest, unmet_latest = lift, unmet
    out[4] = log(min(max(lift / unmet, _LEAST_ODDS), _MOST_ODDS)) / np.sqrt(np.float32(end - first))
    out[5] = log(min(max(lift_latest / unmet_latest, _LEAST_ODDS), _MOST_ODDS)) / np.sqrt(np.float32(latest - first))


@compiled
def encode_item(
    profiles: Profiles,
    viewer: Viewer,
    i_row: Integer,
    item: Integer,
    now_ms: Integer,
    attributes: Int64s,
    numbers: Float32s,
    interests: Integer,
    out: RowSpace,
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
    n_rates = profiles.values.counts.shape[2] - (1 if profiles.exposure[0] >= 0 else 0)
    for k in range(1 + interests):
        value = item if k == 0 else out.ids[to, 1 + k]
        rates(
            profiles.values,
            value,
            now_ms,
            profiles.half_lives_ms,
            profiles.exposure[0],
            viewer.priors,
            dense[at : at + n_rates],
        )
        at += n_rates
    if len(viewer.totals) > 0:
        for k in range(1 + interests):
            value = item if k == 0 else out.ids[to, 1 + k]
            _encode_covisits(profiles, viewer, k, value, now_ms, dense[at : at + N_COVISITS])
            at += N_COVISITS
    for k in range(len(numbers)):
        value = numbers[k]
        if np.isnan(value) and i_row >= 0:
            value = profiles.items.numbers[i_row, k]
        _number(profiles.moments[k], value, dense[at : at + 2])
        at += 2
    out.log_q[to] = log_q(profiles, i_row)


@compiled
def copy_user(out: RowSpace, of: Integer, to: Integer, at: Integer) -> None:
    """What :func:`encode_user` made of row ``of``, for row ``to``."""
    for k in range(out.ids.shape[1]):
        out.ids[to, k] = out.ids[of, k]
    for y in range(out.history.shape[1]):
        for h in range(out.history.shape[2]):
            out.history[to, y, h] = out.history[of, y, h]
    for k in range(at):
        out.dense[to, k] = out.dense[of, k]


@compiled
def encode_sampled(
    profiles: Profiles,
    viewer: Viewer,
    row: Integer,
    now_ms: Integer,
    interests: Integer,
    out: RowSpace,
    first: Integer,
    to: Integer,
    at: Integer,
) -> None:
    """A known item in the place of the event's own: the user's part is copied from row ``first``."""
    copy_user(out, first, to, at)
    encode_item(
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
