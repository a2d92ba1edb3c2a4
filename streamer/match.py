"""The compiled loop over decoded events: de-duplicate, move the watermark, match outcomes, tell where a batch closes.

Python decodes; from there to the batch an event is a place in columns.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from contracts.batch import Bools, Float32s, Int64s
from contracts.settings import Settings
from features.compiled import compiled, compiled_loop
from features.hashing import FieldHasher, hash_ids
from features.idmap import Integer, mix
from features.schema import ITEM_FIELD, OWNERS, USER_FIELD, FeatureSchema, keys_of
from streamer.batching import (
    EMIT,
    ITEM,
    KEEP,
    KIND,
    LIST_ID,
    NEGATIVES,
    RANK,
    SLOT,
    TASK,
    TIME_MS,
    USER,
    Piece,
    count,
    due,
)
from streamer.declared import FIELDS, by_field
from streamer.deduplicate import Seen, seen
from streamer.join import LATE, ORPHAN, Join, advance, expose, label, n_matured, set_label

_REQUESTS_REMEMBERED = 10_000
_DRAW_BITS = 24
_DRAWS = 1 << _DRAW_BITS
_RANK_SALT, _SAMPLE_SALT = 0x52414E4B, 0x53414D50


class Columns(NamedTuple):
    """N decoded events: what the loop looks at. Ids are hashes; a request of 0 is none."""

    kind: Int64s
    user: Int64s
    item: Int64s
    time_ms: Int64s
    event: Int64s
    request: Int64s
    partition: Int64s
    first: Bools
    """The first event of its record: a batch closes before a record, never within one."""


class Rules(NamedTuple):
    """What becomes of an event, by its kind (Y kinds)."""

    exposure: int
    """The kind that opens an example; -1 in implicit mode, where every event is a positive of its task."""
    waits: bool
    """An exposure waits for labels."""
    synthesize: bool
    """An orphan becomes an exposure."""
    negatives: float
    """Items to sample against a positive; a fraction is the share of positives with one more."""
    task: Int64s  # [Y]; -1: none
    rank_below: Int64s  # [Y], events are ranked whose draw is below this


class Tally(NamedTuple):
    """What the loop counts (T tasks)."""

    duplicates: Int64s  # [1]
    orphans: Int64s  # [T]
    late: Int64s  # [T]


class Gathered(NamedTuple):
    """N events as columns: what the loop looks at, and what goes with them into a batch."""

    columns: Columns
    hashes: tuple[Int64s, ...]
    """Of the attributes of item, user and context, shape ``[N, n_ids]`` each."""
    numbers: tuple[Float32s, ...]
    """Shape ``[N, numeric]`` each."""
    truth: Float32s | None
    """The simulator's probabilities, shape ``[N, T]``; None where no event tells any."""

    def piece(self, integers: Int64s, kept: Int64s) -> Piece:
        """The part of a batch that :func:`take` made of the events at these places, as copies."""
        return Piece(
            integers.copy(),
            tuple(one[kept] for one in self.hashes),
            tuple(one[kept] for one in self.numbers),
            None if self.truth is None else self.truth[kept],
        )


class Gatherer:
    """Makes columns of events."""

    def __init__(self, settings: Settings, schema: FeatureSchema) -> None:
        self._readers = dict(zip(OWNERS, (schema.item, schema.user, schema.context), strict=True))
        self._n_keys = {owner: len(keys_of(settings, owner)) for owner in OWNERS}
        self._tasks = schema.layout.tasks
        self._kinds = {name: kind for kind, name in enumerate(settings.event_types)}
        self._users, self._items = FieldHasher(USER_FIELD), FieldHasher(ITEM_FIELD)
        self._requests = FieldHasher("request_id", _REQUESTS_REMEMBERED)

    def __call__(self, events: Sequence[Struct], partition: Int64s, first: Bools) -> Gathered:
        """Columns of events as :class:`streamer.declared.Declared` has them.

        :param partition: shape ``[N]``, their places in the join; ``first``: see :class:`Columns`.
        """
        n_events = len(events)
        of = dict(zip(FIELDS, by_field(events, len(FIELDS)), strict=True))
        columns = Columns(
            kind=np.fromiter(map(self._kinds.__getitem__, of["type"]), np.int64, n_events),
            user=self._users.column(of["user_id"]),
            item=self._items.column(of["item_id"]),
            time_ms=np.array(of["ts_ms"], np.int64),
            event=hash_ids("event_id", of["event_id"]),
            request=self._requests.column([request or None for request in of["request_id"]]),
            partition=partition,
            first=first,
        )
        hashes, numbers = zip(
            *(
                reader.of_values(by_field(of[owner], self._n_keys[owner]), n_events)
                for owner, reader in self._readers.items()
            ),
            strict=True,
        )
        return Gathered(columns, hashes, numbers, self._truth(of["truth"]))

    def _truth(self, told: Sequence[Mapping[str, float] | None]) -> Float32s | None:
        if not any(told):
            return None
        nan = float("nan")
        return np.array([[(one or {}).get(name, nan) for name in self._tasks] for one in told], np.float32)


def rules_of(settings: Settings, *, waits: bool) -> Rules:
    """The settings as the loop needs them.

    :param waits: some task is an outcome that an exposure waits for.
    """
    kinds = settings.event_types
    task_of = {task.event_type: index for index, task in enumerate(settings.tasks)}
    below = {task.event_type: int(settings.evaluation.ranking.get(task.name, 0.0) * _DRAWS) for task in settings.tasks}
    task = np.array([task_of.get(kind, -1) for kind in kinds], np.int64)
    is_exposure_mode = settings.mode == "exposure"
    exposure = kinds.index(settings.events.exposure) if is_exposure_mode else -1
    negatives = settings.negatives.exposure if is_exposure_mode else settings.negatives.implicit
    if is_exposure_mode and not negatives:
        # Without sampled items an exposure's own task would only ever see positives.
        task[exposure] = -1
    return Rules(
        exposure=exposure,
        waits=waits,
        synthesize=settings.events.orphans == "synthesize",
        negatives=float(negatives),
        task=task,
        rank_below=np.array([below.get(kind, 0) for kind in kinds], np.int64),
    )


@compiled
def _drawn(event: Integer, salt: Integer) -> Integer:
    """A number from 0 to :data:`_DRAWS` that the event's id decides."""
    return np.int64(mix(event ^ salt) >> np.uint64(64 - _DRAW_BITS))


@compiled_loop
def take(
    join: Join,
    known: Seen,
    counts: Int64s,
    limits: Int64s,
    rules: Rules,
    events: Columns,
    start: Integer,
    taken: Int64s,
    kept: Int64s,
    tally: Tally,
) -> tuple[int, int]:
    """Take events from ``start`` on, up to the one that the open batch closes before.

    For each event: close the batch first, if it would come after its end; drop it, if it was seen before; advance the
    watermark; match it.

    :param counts: of the open batch, see :class:`streamer.batching.EventBuffer`; ``limits`` likewise.
    :param taken: shape ``[11, N]``, filled with the events' integers; ``kept``: shape ``[N]``, with their places.
    :returns: the place to go on from (N: at the end), and how many events were kept.
    """
    n_kept = 0
    for e in range(start, len(events.kind)):
        time_ms, request, user, item = events.time_ms[e], events.request[e], events.user[e], events.item[e]
        if events.first[e] and due(counts, limits, time_ms, request, user, item, n_matured(join)):
            return e, n_kept
        if seen(known, events.event[e], time_ms):
            tally.duplicates[0] += 1
            continue
        kind, partition = events.kind[e], events.partition[e]
        advance(join, partition, time_ms)
        task = rules.task[kind]
        slot: Integer = np.int64(-1)
        list_id = np.int64(0)
        emit, keep = False, False
        if rules.exposure < 0:
            emit = True
        elif kind == rules.exposure:
            if rules.waits:
                slot = expose(join, partition, time_ms, user, item, request)
            emit, keep, list_id = True, rules.waits, request
        else:
            found = label(join, task, time_ms, user, item, request)
            if found == ORPHAN and rules.synthesize:
                slot = expose(join, partition, time_ms, user, item, request)
                set_label(join, slot, task)
                emit, keep, list_id = True, True, request
            elif found == ORPHAN:
                tally.orphans[task] += 1
            elif found == LATE:
                tally.late[task] += 1
            task = np.int64(-1)
        is_positive = emit and task >= 0
        negatives = np.int64(rules.negatives + _drawn(events.event[e], _SAMPLE_SALT) / _DRAWS) if is_positive else 0
        taken[KIND, n_kept], taken[USER, n_kept], taken[ITEM, n_kept], taken[TIME_MS, n_kept] = (
            kind,
            user,
            item,
            time_ms,
        )
        taken[EMIT, n_kept], taken[KEEP, n_kept], taken[NEGATIVES, n_kept] = emit, keep, negatives
        taken[RANK, n_kept] = is_positive and _drawn(events.event[e], _RANK_SALT) < rules.rank_below[kind]
        taken[SLOT, n_kept], taken[TASK, n_kept], taken[LIST_ID, n_kept] = slot, task, list_id
        kept[n_kept] = e
        n_kept += 1
        count(counts, time_ms, request, user, item, 1 + negatives if emit else 0)
    return len(events.kind), n_kept
