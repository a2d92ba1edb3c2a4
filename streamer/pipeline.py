"""The ingest side: records in, batches and barriers out.

Order of work, for the records of one poll:

1. decode each; a bad record goes to the dead letters when the stream comes by, and goes on;
2. make columns of the events; the compiled loop (`streamer.match`) takes them one by one, in stream order: it closes
   the batch first, if this record would come after its end, drops what was seen before, advances the watermark, matches
   outcomes to exposures;
3. when a batch closes, a second compiled loop (`features.encoder`) encodes and remembers its events.

Nothing here depends on how many records a poll returned, nor on the wall clock, so a replay gives the same batches.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from contracts.batch import INGEST_GROUPS, Barrier, Batch, Int64s, RankingRows, Rows
from contracts.memory import array_bytes
from contracts.records import Offsets, Partition, Record, decode_offsets, encode_offsets
from contracts.settings import Settings
from features.encoder import Encoded, Encoder
from features.profiles import load_profiles, n_evicted, new_profiles, save_profiles
from features.schema import FeatureSchema
from streamer.batching import KIND, MOST_BATCHES, N_INTEGERS, EventBuffer
from streamer.deadletter import DeadLetterSink
from streamer.decode import EventDecoder
from streamer.deduplicate import Deduplicator
from streamer.join import Joiner, outcomes_of
from streamer.match import Gatherer, Tally, rules_of, take
from streamer.metrics import StreamMetrics
from streamer.sources._base import Source

_POLL_MS = 200
_FLUSH_SECONDS = 30.0
_CHUNK = 250
"""Records whose events are made into columns together: so many still fit into a processor's cache."""


_PARTITION, _OFFSET = itemgetter(0, 1), itemgetter(2)  # of a record


class Ingest:
    """Poll, decode, join, encode: everything before the learner.

    :param settings: the whole run's settings.
    :param stop: asked between records; true ends the stream after the current batch.
    :param clock_ms: wall clock; it only spaces the barriers out.
    """

    def __init__(
        self,
        settings: Settings,
        source: Source,
        decoder: EventDecoder,
        dead_letters: DeadLetterSink,
        metrics: StreamMetrics,
        stop: Callable[[], bool] = lambda: False,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.schema = FeatureSchema.of(settings)
        self.profiles = new_profiles(settings.features, self.schema, settings.negatives.uniform_share, settings.seed)
        self.n_events = 0
        self.n_rejected = 0
        self._settings = settings
        self._source = source
        self._decoder = decoder
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._stop = stop
        self._clock_ms = clock_ms
        self._barrier_clock_ms = clock_ms()
        self._encoder = Encoder(self.schema, self.profiles)
        self._gatherer = Gatherer(settings, self.schema)
        outcomes = outcomes_of(settings)
        self._rules = rules_of(settings, waits=bool(outcomes))
        self._learned_at_once = np.array(settings.immediate_tasks)
        self._joiner = Joiner(settings.tasks, outcomes, settings.events.lateness_ms, settings.events.max_open)
        self._seen = Deduplicator(settings.events.deduplicate_ms, settings.events.deduplicate_max)
        n_tasks = len(settings.tasks)
        self._buffer = EventBuffer(self.schema, n_tasks, settings.batch)
        self._tally = Tally(*(np.zeros(n, np.int64) for n in (1, n_tasks, n_tasks)))
        self._offsets: Offsets = {}
        self._barrier_events = self._cut_events = 0
        self._cut_clock_ms = self._barrier_clock_ms
        self._held = False  # the arrays of the last cut are still in use
        self._told: dict[str, int] = {}
        self._n_skipped: dict[Partition, int] = {}

    @property
    def offsets(self) -> Offsets:
        """The next offset of every partition, as far as batches were made."""
        return dict(self._offsets)

    @property
    def event_time_ms(self) -> int:
        """The newest event time read."""
        return max(self._joiner.newest_ms.values(), default=-1)

    @property
    def n_bytes(self) -> dict[str, int]:
        """Memory of what grows with the stream, by part."""
        return {
            "profiles": array_bytes(self.profiles),
            "open_exposures": self._joiner.n_bytes,
            "event_ids": self._seen.n_bytes,
        }

    @property
    def label_delays(self) -> Int64s:
        """Outcomes by time since their exposure, shape ``[T, 160]``, since the start of this process."""
        return self._joiner.state.delays.copy()

    def stream(self) -> Iterator[Batch | Barrier]:
        """Batches, with a barrier whenever a snapshot is due, and one at the end.

        A batch that is not full when a stop is asked for stays open and is part of the last barrier: a run that is
        stopped and resumed learns the same batches as one that is not. Only the end of the source closes it.
        """
        stopped = self._stop()
        while not stopped and not self._source.ended:
            # A partition without records so far has a position, too: a run that resumes must not miss its first ones.
            self._offsets = {**self._source.position(), **self._offsets}
            records = self._source.poll(_POLL_MS)
            for closed in self._closed(records):
                yield from self._portions(closed)
                yield from self._due_cut()
                stopped = self._stop()
                if stopped:
                    break
            stopped = stopped or self._stop()
            self.tell()
            if not records:
                yield from self._due_cut()
        if not stopped and (self._buffer.n_events or self._joiner.n_matured):
            yield from self._portions(self._close_batch())
        yield self.barrier()

    def close_open_windows(self) -> Batch:
        """The examples still waiting, labelled as they stand: what `evaluate` counts at the end of a log."""
        self._joiner.close_all()
        return self._close_batch()

    def barrier(self) -> Barrier:
        """The cut at this point; the dead letters of everything before it are safe first.

        Its arrays share no memory with what the stream goes on to change.
        """
        self._dead_letters.flush(_FLUSH_SECONDS)
        self._barrier_events, self._barrier_clock_ms = self.n_events, self._clock_ms()
        self._cut()
        join_arrays, join_state = self._joiner.save()
        seen_arrays, seen_state = self._seen.save()
        open_arrays, open_state = self._buffer.save()
        parts = (save_profiles(self.profiles), join_arrays, seen_arrays, open_arrays)
        groups = dict(zip(INGEST_GROUPS, parts, strict=True))
        state = {
            "join": join_state,
            "seen": seen_state,
            "open_batch": open_state,
            "n_events": self.n_events,
            "n_rejected": self.n_rejected,
            "offsets": encode_offsets(self._offsets),
        }
        return Barrier(dict(self._offsets), groups, state, self.event_time_ms, self.n_events, self._release)

    def delta(self) -> Barrier:
        """A delta's cut at this point: the profiles that changed since the last cut."""
        self._cut()
        groups = {"profiles": save_profiles(self.profiles, changes=True)}
        return Barrier(dict(self._offsets), groups, {}, self.event_time_ms, self.n_events, self._release, is_delta=True)

    def restore(self, groups: Mapping[str, dict[str, NDArray[Any]]], state: dict[str, Any]) -> None:
        """Take up the state of a barrier. The source must be made to stand at the barrier's offsets."""
        load_profiles(self.profiles, groups["profiles"])
        self._joiner.restore(groups["join"], state["join"])
        self._seen.restore(groups["seen"], state["seen"])
        self._buffer.restore(groups["open_batch"], state["open_batch"])
        self.n_events, self.n_rejected = state["n_events"], state["n_rejected"]
        self._barrier_events = self._cut_events = state["n_events"]
        self._offsets = decode_offsets(state["offsets"])
        self._told = {name: total for name, _, total in self._totals()}

    def _closed(self, records: Sequence[Record]) -> Iterator[Batch]:
        """The batches that these records close. Whoever stops between two stands before the record that comes next."""
        for start in range(0, len(records), _CHUNK):
            yield from self._take(records[start : start + _CHUNK])

    def _take(self, records: Sequence[Record]) -> Iterator[Batch]:
        events, places, rejected = self._decoder.decode_all(records)
        place = np.array(places, np.int64)
        partitions = list(map(_PARTITION, records))
        place_of = {one: self._joiner.partition(one) for one in dict.fromkeys(partitions)}
        owner = list(map(place_of.__getitem__, partitions))
        offsets = list(map(_OFFSET, records))
        partition = np.array(owner, np.int64)[place]
        gathered = self._gatherer(events, partition, np.diff(place, prepend=-1) > 0)
        integers, kept = np.empty((N_INTEGERS, len(events)), np.int64), np.empty(len(events), np.int64)
        self._joiner.reserve(len(events))
        self._seen.reserve(len(events))
        bad = iter([*rejected, (len(records), None)])
        next_bad, error = next(bad)
        n_read = at = 0
        while True:
            end, n_kept = take(
                self._joiner.state,
                self._seen.state,
                self._buffer.counts,
                self._buffer.limits,
                self._rules,
                gathered.columns,
                at,
                integers,
                kept,
                self._tally,
            )
            self._buffer.add(gathered.piece(integers[:, :n_kept], kept[:n_kept]))
            self._count(partition[kept[:n_kept]], integers[KIND, :n_kept])
            n_passed = int(place[end]) if end < len(events) else len(records)
            while error is not None and next_bad < n_passed:
                self._dead_letters.send(records[next_bad], error.reason, error.detail)
                self.n_rejected += 1
                self._metrics.rejected.labels(error.reason).inc()
                self._metrics.dead_letters.labels(error.reason).inc()
                next_bad, error = next(bad)
            # Of each partition the last one stays.
            for one, offset in dict(zip(owner[n_read:n_passed], offsets[n_read:n_passed], strict=True)).items():
                self._offsets[self._joiner.partitions[one]] = offset + 1
            if end == len(events):
                return
            n_read, at = n_passed, end
            yield self._close_batch()

    def _count(self, partition: Int64s, kind: Int64s) -> None:
        self.n_events += len(kind)
        types = self._settings.event_types
        for place, n_events in enumerate(np.bincount(partition * len(types) + kind).tolist()):
            if n_events:
                topic = self._joiner.partitions[place // len(types)][0]
                self._metrics.consumed.labels(topic, types[place % len(types)]).inc(n_events)

    def _close_batch(self) -> Batch:
        n_events, first_event_ms = self._buffer.n_events, self._buffer.first_event_ms
        columns, slot, task, truth = self._buffer.take()
        encoded = self._encoder.encode(columns)
        event, shown = encoded.event, ~encoded.sampled
        n_tasks = len(self._settings.tasks)
        row_task = task[event]
        known = np.zeros((len(event), n_tasks), np.bool_)
        comparable = np.flatnonzero((row_task >= 0) & ~encoded.new_item[event])
        known[comparable, row_task[comparable]] = True
        labels = (known & shown[:, None]).astype(np.float32)
        row_slot = np.where(shown, slot[event], -1)
        matured = self._joiner.take_matured()
        counted = encoded.new_item & (task >= 0) & (columns.emit == 1)
        return Batch(
            rows=encoded.rows,
            slot=row_slot,
            sampled=encoded.sampled,
            time_ms=columns.time_ms[event],
            list_id=np.where(shown, columns.list_id[event], 0),
            labels=labels,
            known=known,
            learn=known | ((row_slot >= 0)[:, None] & self._learned_at_once),
            truth=None if truth is None else np.where(shown[:, None], truth[event], np.float32(np.nan)),
            matured_slot=matured.slot,
            matured_labels=_bits(matured.labels, n_tasks).astype(np.float32),
            matured_known=_bits(matured.known, n_tasks),
            matured_learn=_bits(matured.learn, n_tasks),
            matured_late=_bits(matured.late, n_tasks),
            ranking=self._ranking(encoded, task),
            new_item_events=np.bincount(task[counted], minlength=n_tasks),
            n_events=n_events,
            watermark_ms=min(self._joiner.newest_ms.values(), default=0) - self._settings.events.lateness_ms,
            first_event_ms=first_event_ms,
        )

    def _portions(self, batch: Batch) -> Iterator[Batch]:
        """The batch; where a leap of event time closed very many windows, the rest of their labels in further ones."""
        limit, n_matured = MOST_BATCHES * self._settings.batch.max_rows, len(batch.matured_slot)
        for start in range(0, max(n_matured, 1), limit):
            portion = slice(start, start + limit)
            yield replace(
                batch if start == 0 else _without_rows(batch),
                matured_slot=batch.matured_slot[portion],
                matured_labels=batch.matured_labels[portion],
                matured_known=batch.matured_known[portion],
                matured_learn=batch.matured_learn[portion],
                matured_late=batch.matured_late[portion],
            )

    def _ranking(self, encoded: Encoded, task: Int64s) -> RankingRows | None:
        if not len(encoded.ranked_event):
            return None
        return RankingRows(encoded.ranking, task[encoded.ranked_event], encoded.tie_breaks)

    def _totals(self) -> Iterator[tuple[str, Counter, int]]:
        """What went at each cap since the state began: name, metric, how often."""
        yield "exposures", self._metrics.evicted, self._joiner.n_evicted
        yield "generations", self._metrics.ended_early, self._seen.ended_early
        for what, total in n_evicted(self.profiles).items():
            yield what, self._metrics.forgotten.labels(what), total

    def _due_cut(self) -> Iterator[Barrier]:
        """The barrier or the delta that is due, if one is.

        No delta while the arrays of the last cut are in use: the ingest would wait for them.
        """
        snapshot = self._settings.snapshot
        n_new, delta_ms = self.n_events - self._barrier_events, snapshot.delta_seconds * 1000
        if n_new >= snapshot.every_events or self._is_time(n_new, self._barrier_clock_ms, snapshot.every_ms):
            yield self.barrier()
        elif (
            delta_ms
            and not self._held
            and self._is_time(self.n_events - self._cut_events, self._cut_clock_ms, delta_ms)
        ):
            yield self.delta()

    def _is_time(self, n_new: int, last_ms: int, every_ms: float) -> bool:
        elapsed_ms = self._clock_ms() - last_ms
        # A clock that was put back would otherwise have to make up for it first.
        return n_new > 0 and (elapsed_ms >= every_ms or elapsed_ms < 0)

    def _cut(self) -> None:
        self._cut_events, self._cut_clock_ms, self._held = self.n_events, self._clock_ms(), True

    def _release(self) -> None:
        self._held = False

    def tell(self, *, stalled: bool = False) -> None:
        """Bring the metrics up to date; the stream does so after each poll.

        :param stalled: whoever reads the stream takes nothing, so nothing is polled: the source is to ask for its ends.
        """
        metrics = self._metrics
        metrics.duplicate.inc(int(self._tally.duplicates[0]))
        for counter, counts in ((metrics.orphans, self._tally.orphans), (metrics.late, self._tally.late)):
            for task, n_outcomes in zip(self._settings.tasks, counts.tolist(), strict=True):
                if n_outcomes:
                    counter.labels(task.name).inc(n_outcomes)
        for counts in self._tally:
            counts[:] = 0
        metrics.open_keys.set(self._joiner.n_open)
        for what, n_bytes in self.n_bytes.items():
            metrics.state_bytes.labels(what).set(n_bytes)
        for name, counter, total in self._totals():
            counter.inc(total - self._told.get(name, 0))
            self._told[name] = total
        for (topic, partition), lag in self._source.lag(ask=stalled).items():
            metrics.lag.labels(topic, str(partition)).set(lag)
        condition = self._source.condition()
        metrics.connected.set(condition.connected)
        for (topic, partition), n_offsets in condition.skipped.items():
            n_told = self._n_skipped.get((topic, partition), 0)
            metrics.skipped.labels(topic, str(partition)).inc(n_offsets - n_told)
        self._n_skipped = dict(condition.skipped)
        newest_ms: dict[str, int] = {}
        for (topic, _), time_ms in self._joiner.newest_ms.items():
            newest_ms[topic] = max(time_ms, newest_ms.get(topic, time_ms))
        for topic, time_ms in newest_ms.items():
            metrics.last_event.labels(topic).set(time_ms / 1000)


def _bits(masks: Int64s, n_tasks: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (masks[:, None] >> np.arange(n_tasks) & 1).astype(np.bool_)
    return found


def _without_rows(batch: Batch) -> Batch:
    rows = batch.rows
    return replace(
        batch,
        rows=Rows(rows.ids[:0], rows.history[:0], rows.dense[:0], rows.log_q[:0]),
        slot=batch.slot[:0],
        sampled=batch.sampled[:0],
        time_ms=batch.time_ms[:0],
        list_id=batch.list_id[:0],
        labels=batch.labels[:0],
        known=batch.known[:0],
        learn=batch.learn[:0],
        truth=None,
        ranking=None,
        new_item_events=np.zeros_like(batch.new_item_events),
        n_events=0,
    )
