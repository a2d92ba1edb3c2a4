"""The ingest side: records in, batches and barriers out.

Order of work, for each record:

1. decode; a bad record goes to the dead letters and the stream goes on;
2. close the batch first, if this record would come after its end;
3. drop what was seen before; advance the watermark; match outcomes to exposures;
4. gather the event's columns. When a batch closes, the compiled loop encodes and remembers its events.

Nothing here depends on how many records a poll returned, nor on the wall clock, so a replay gives the same batches.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Barrier, Batch, Int64s, RankingRows, Rows
from contracts.events import Event
from contracts.records import BadRecordError, Offsets, Partition, Record, decode_offsets, encode_offsets
from contracts.settings import Settings
from features.encoder import Encoded, Encoder
from features.hashing import FieldHasher, hash_id
from features.profiles import load_profiles, new_profiles, save_profiles
from features.schema import ITEM_FIELD, USER_FIELD, FeatureSchema
from streamer.batching import MOST_BATCHES, EventBuffer
from streamer.deadletter import DeadLetterSink
from streamer.decode import EventDecoder
from streamer.deduplicate import Deduplicator
from streamer.join import Joiner
from streamer.metrics import StreamMetrics
from streamer.sources._base import Source

_POLL_MS = 200
_FLUSH_SECONDS = 30.0
_RANK_SCALE = 1 << 24
_REQUESTS_REMEMBERED = 10_000


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
        self._user_hasher, self._item_hasher = FieldHasher(USER_FIELD), FieldHasher(ITEM_FIELD)
        self._request_hasher = FieldHasher("request_id", _REQUESTS_REMEMBERED)
        self._kinds = {name: index for index, name in enumerate(settings.event_types)}
        self._task_of = {task.event_type: index for index, task in enumerate(settings.tasks)}
        self._is_exposure_mode = settings.mode == "exposure"
        exposure_task = self._task_of.get(settings.events.exposure, -1)
        outcomes = [index for index in range(len(settings.tasks)) if self._is_exposure_mode and index != exposure_task]
        self._outcomes = set(outcomes)
        self._learned_at_once = np.array(
            [index in self._outcomes and task.delay == "fnc_in_loss" for index, task in enumerate(settings.tasks)]
        )
        # Without sampled items an exposure's own task would only ever see positives.
        self._exposure_task = exposure_task if settings.negatives.exposure else -1
        self._joiner = Joiner(settings.tasks, outcomes, settings.events.lateness_ms, settings.events.max_open)
        self._seen = Deduplicator(settings.events.deduplicate_ms, settings.events.deduplicate_max)
        self._buffer = EventBuffer(self.schema, self.schema.layout.tasks, settings.batch)
        self._offsets: Offsets = {}
        self._barrier_events = 0
        shares = settings.evaluation.ranking
        self._rank_below = {
            task.event_type: int(shares[task.name] * _RANK_SCALE) for task in settings.tasks if shares.get(task.name)
        }
        self._n_evicted = 0
        self._consumed: Counter[tuple[str, str]] = Counter()

    @property
    def offsets(self) -> Offsets:
        """The next offset of every partition, as far as batches were made."""
        return dict(self._offsets)

    @property
    def event_time_ms(self) -> int:
        """The newest event time read."""
        return max(self._joiner.newest_ms.values(), default=-1)

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
            for record in records:
                events = self._decode(record)
                if events and self._buffer.due(events[0].ts_ms, events[0].request_id, self._joiner.n_matured):
                    yield from self._portions(self._close_batch())
                    if self._barrier_due():
                        yield self.barrier()
                partition = (record.topic, record.partition)
                for event in events:
                    self._take(event, partition)
                self._offsets[partition] = record.offset + 1
                stopped = self._stop()
                if stopped:
                    break
            stopped = stopped or self._stop()
            self._tell()
            if not records and self._barrier_due():
                yield self.barrier()
        if not stopped and (self._buffer.n_events or self._joiner.n_matured):
            yield from self._portions(self._close_batch())
        yield self.barrier()

    def close_open_windows(self) -> Batch:
        """The examples still waiting, labelled as they stand: what `evaluate` counts at the end of a log."""
        self._joiner.close_all()
        return self._close_batch()

    def barrier(self) -> Barrier:
        """The cut at this point; the dead letters of everything before it are safe first."""
        self._dead_letters.flush(_FLUSH_SECONDS)
        self._barrier_events, self._barrier_clock_ms = self.n_events, self._clock_ms()
        join_arrays, join_state = self._joiner.save()
        seen_arrays, seen_state = self._seen.save()
        open_arrays, open_state = self._buffer.save()
        groups = {
            "profiles": save_profiles(self.profiles),
            "join": join_arrays,
            "seen": seen_arrays,
            "open_batch": open_arrays,
        }
        state = {
            "join": join_state,
            "seen": seen_state,
            "open_batch": open_state,
            "n_events": self.n_events,
            "n_rejected": self.n_rejected,
            "offsets": encode_offsets(self._offsets),
        }
        return Barrier(dict(self._offsets), groups, state, self.event_time_ms, self.n_events)

    def restore(self, groups: Mapping[str, dict[str, NDArray[Any]]], state: dict[str, Any]) -> None:
        """Take up the state of a barrier. The source must be made to stand at the barrier's offsets."""
        load_profiles(self.profiles, groups["profiles"])
        self._joiner.restore(groups["join"], state["join"])
        self._seen.restore(groups["seen"], state["seen"])
        self._buffer.restore(groups["open_batch"], state["open_batch"])
        self.n_events, self.n_rejected = state["n_events"], state["n_rejected"]
        self._barrier_events = state["n_events"]
        self._offsets = decode_offsets(state["offsets"])
        self._n_evicted = self._joiner.n_evicted

    def _decode(self, record: Record) -> list[Event]:
        try:
            return self._decoder.decode(record)
        except BadRecordError as error:
            self._dead_letters.send(record, error.reason, error.detail)
            self.n_rejected += 1
            self._metrics.rejected.labels(error.reason).inc()
            self._metrics.dead_letters.labels(error.reason).inc()
            return []

    def _take(self, event: Event, partition: Partition) -> None:
        if self._seen.seen(hash_id("event_id", event.event_id), event.ts_ms):
            self._metrics.duplicate.inc()
            return
        self.n_events += 1
        self._consumed[partition[0], event.type] += 1
        self._joiner.advance(partition, event.ts_ms)
        user, item = self._user_hasher(event.user_id), self._item_hasher(event.item_id)
        if self._is_exposure_mode:
            self._take_exposure_mode(event, partition, user, item)
        else:
            task = self._task_of[event.type]
            negatives = self._settings.negatives.implicit
            rank = self._ranked(event)
            self._buffer.add(
                event, self._kinds[event.type], user, item, emit=True, negatives=negatives, rank=rank, task=task
            )

    def _take_exposure_mode(self, event: Event, partition: Partition, user: int, item: int) -> None:
        kind = self._kinds[event.type]
        request = self._request_hasher(event.request_id) if event.request_id else 0
        if event.type == self._settings.events.exposure:
            slot = self._joiner.expose(partition, event.ts_ms, user, item, request) if self._outcomes else -1
            task = self._exposure_task
            self._buffer.add(
                event,
                kind,
                user,
                item,
                emit=True,
                keep=bool(self._outcomes),
                negatives=self._settings.negatives.exposure if task >= 0 else 0,
                rank=task >= 0 and self._ranked(event),
                slot=slot,
                task=task,
                list_id=request,
            )
            return
        task = self._task_of[event.type]
        found = self._joiner.label(task, event.ts_ms, user, item, request)
        if found == "orphan" and self._settings.events.orphans == "synthesize":
            slot = self._joiner.expose(partition, event.ts_ms, user, item, request)
            self._joiner.set_label(slot, task)
            self._buffer.add(event, kind, user, item, emit=True, keep=True, slot=slot, list_id=request)
            return
        if found == "orphan":
            self._metrics.orphans.labels(self._settings.tasks[task].name).inc()
        elif found == "late":
            self._metrics.late.labels(self._settings.tasks[task].name).inc()
        self._buffer.add(event, kind, user, item)

    def _ranked(self, event: Event) -> bool:
        below = self._rank_below.get(event.type)
        return below is not None and hash_id("rank", event.event_id) % _RANK_SCALE < below

    def _close_batch(self) -> Batch:
        n_events, first_event_ms = self._buffer.n_events, self._buffer.first_event_ms
        columns, slot, task, list_id, truth = self._buffer.take()
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
            list_id=np.where(shown, list_id[event], 0),
            labels=labels,
            known=known,
            learn=known | ((row_slot >= 0)[:, None] & self._learned_at_once),
            truth=None if truth is None else np.where(shown[:, None], truth[event], np.float32(np.nan)),
            matured_slot=np.array(matured.slot, np.int64),
            matured_labels=_bits(matured.labels, n_tasks).astype(np.float32),
            matured_known=_bits(matured.known, n_tasks),
            matured_learn=_bits(matured.learn, n_tasks),
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
            )

    def _ranking(self, encoded: Encoded, task: Int64s) -> RankingRows | None:
        if not len(encoded.ranked_event):
            return None
        return RankingRows(encoded.ranking, task[encoded.ranked_event], encoded.tie_breaks)

    def _barrier_due(self) -> bool:
        n_new, snapshot = self.n_events - self._barrier_events, self._settings.snapshot
        if n_new >= snapshot.every_events:
            return True
        return n_new > 0 and self._clock_ms() - self._barrier_clock_ms >= snapshot.every_ms

    def _tell(self) -> None:
        metrics = self._metrics
        for (topic, type_), count in self._consumed.items():
            metrics.consumed.labels(topic, type_).inc(count)
        self._consumed.clear()
        metrics.open_keys.set(self._joiner.n_open)
        metrics.evicted.inc(self._joiner.n_evicted - self._n_evicted)
        self._n_evicted = self._joiner.n_evicted
        for (topic, partition), lag in self._source.lag().items():
            metrics.lag.labels(topic, str(partition)).set(lag)
        for topic in {topic for topic, _ in self._joiner.newest_ms}:
            newest_ms = max(time_ms for (name, _), time_ms in self._joiner.newest_ms.items() if name == topic)
            metrics.last_event.labels(topic).set(newest_ms / 1000)


def _bits(masks: list[int], n_tasks: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (np.array(masks, np.int64)[:, None] >> np.arange(n_tasks) & 1).astype(np.bool_)
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
