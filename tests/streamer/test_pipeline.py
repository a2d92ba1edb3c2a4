"""Records in, batches and barriers out: the whole ingest side over a source in memory and the real decoder."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from contracts.batch import Barrier, Batch, Rows
from contracts.events import Event
from contracts.records import Record
from contracts.settings import Settings
from features.hashing import hash_id
from features.profiles import copy_profiles, load_profiles, save_profiles
from streamer.batching import MOST_BATCHES
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.sources.memory import PAUSE, MemorySource

NOW_MS = 1_700_000_000_000
VIEW, CLICK, PURCHASE = range(3)
TYPES = ("content_view", "click", "purchase")
Piece = Batch | Barrier


def _settings(mode: str = "exposure", **sections: Any) -> Settings:
    return Settings.model_validate(
        {
            "mode": mode,
            "tasks": [
                {"name": "content_view"},
                {"name": "click", "window": "30s"},
                {"name": "purchase", "window": "2m"},
            ],
            "fields": [
                {"source": "item.brand"},
                {"source": "item.price", "kind": "numeric"},
                {"source": "user.country"},
                {"source": "context.hour", "kind": "numeric"},
            ],
            "features": {"users": 64, "items": 64, "history_length": 3, "recent_items": 32, "half_lives": ["1m", "1h"]},
            "batch": {"max_rows": 24, "min_rows": 6, "span": "20s"},
            "snapshot": {"every": "1h", "every_events": 50},
            "negatives": {"implicit": 3},
            "events": {"lateness": "3s"},
            **sections,
        }
    )


@dataclass
class Run:
    """An ingest over records in memory, and what it leaves behind."""

    ingest: Ingest
    source: MemorySource
    letters: MemoryDeadLetters
    registry: CollectorRegistry

    def pieces(self) -> list[Piece]:
        """All of the stream."""
        return list(self.ingest.stream())

    def batches(self) -> list[Batch]:
        return _batches(self.pieces())

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"anabranch_{name}", labels) or 0.0


def _run(
    settings: Settings,
    *partitions: Sequence[Record | Any],
    max_records: int = 1000,
    stop: Callable[[], bool] = lambda: False,
    clock_ms: Callable[[], int] = lambda: NOW_MS,
) -> Run:
    source = MemorySource({("events", n): records for n, records in enumerate(partitions)}, max_records)
    letters, registry = MemoryDeadLetters(), CollectorRegistry()
    decoder = EventDecoder(settings, None, lambda: NOW_MS + 10_000_000)
    ingest = Ingest(settings, source, decoder, letters, StreamMetrics(registry), stop, clock_ms)
    return Run(ingest, source, letters, registry)


def _records(events: Sequence[Event | bytes], partition: int = 0) -> list[Record]:
    values = [event if isinstance(event, bytes) else msgspec.json.encode(event) for event in events]
    return [Record("events", partition, offset, None, value) for offset, value in enumerate(values)]


def _event(type_: str, user: int, item: int, ts_ms: int, request_id: str | None = None, /, **more: Any) -> Event:
    return Event(
        event_id=more.pop("event_id", f"{type_}-{user}-{item}-{ts_ms}-{request_id}"),
        type=type_,
        user_id=f"u{user}",
        item_id=item,
        ts_ms=NOW_MS + ts_ms,
        request_id=request_id,
        **more,
    )


def _shop(n_requests: int, seed: int, first_user: int = 0) -> list[Event]:
    """Lists of three items and their outcomes in order of time, then shuffled a little (less than the lateness)."""
    rng = np.random.default_rng(seed)
    timed: list[tuple[float, Event]] = []
    for n in range(n_requests):
        user, ts_ms, request = first_user + int(rng.integers(12)), 2_000 * n, f"r{seed}-{n}"
        for item in rng.choice(40, 3, replace=False).tolist():
            about = {"brand": f"b{item % 5}", "price": float(item)} if rng.random() < 0.7 else {}
            common: dict[str, Any] = {"item": about, "user": {"country": user % 3}}
            shown = _event("content_view", user, item, ts_ms, request, context={"hour": n % 24}, **common)
            timed.append((ts_ms, shown))
            for type_, chance, window_ms in (("click", 0.4, 40_000), ("purchase", 0.2, 150_000)):
                if rng.random() < chance:
                    later_ms = ts_ms + 1 + int(rng.integers(window_ms))
                    named = request if rng.random() < 0.8 else None
                    timed.append((later_ms + rng.uniform(0, 2_000), _event(type_, user, item, later_ms, named)))
    return [event for _, event in sorted(timed, key=lambda pair: pair[0])]


def _batches(pieces: Sequence[Piece]) -> list[Batch]:
    return [piece for piece in pieces if isinstance(piece, Batch)]


def _barriers(pieces: Sequence[Piece]) -> list[Barrier]:
    return [piece for piece in pieces if isinstance(piece, Barrier)]


def _assert_same(found: Any, wanted: Any, path: str = "") -> None:
    """The same bits everywhere."""
    assert type(found) is type(wanted), path
    if isinstance(wanted, Batch | Barrier | Rows) or hasattr(wanted, "tie_breaks"):
        for field in fields(wanted):
            if field.name == "release":
                continue
            _assert_same(getattr(found, field.name), getattr(wanted, field.name), f"{path}.{field.name}")
    elif isinstance(wanted, np.ndarray):
        np.testing.assert_array_equal(found, wanted, err_msg=path)
        assert found.dtype == wanted.dtype, path
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), path
        for key in wanted:
            _assert_same(found[key], wanted[key], f"{path}[{key}]")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), path
        for n, (left, right) in enumerate(zip(found, wanted, strict=True)):
            _assert_same(left, right, f"{path}[{n}]")
    else:
        assert found == wanted, path


def _matured(batches: Sequence[Batch]) -> dict[tuple[int, int, int], dict[int, bool]]:
    """What a learner sees: (user, item, time) of each exposure → task → label, matched by the slot it was kept in."""
    kept: dict[int, tuple[int, int, int]] = {}
    labels: dict[tuple[int, int, int], dict[int, bool]] = defaultdict(dict)
    for batch in batches:
        for row in np.flatnonzero(batch.slot >= 0).tolist():
            user, item = batch.rows.ids[row, :2].tolist()
            kept[int(batch.slot[row])] = (user, item, int(batch.time_ms[row]))
        for slot, label, known in zip(
            batch.matured_slot.tolist(), batch.matured_labels, batch.matured_known, strict=True
        ):
            for task in np.flatnonzero(known).tolist():
                assert task not in labels[kept[slot]], "a label came twice"
                labels[kept[slot]][task] = bool(label[task])
    return dict(labels)


def _key(event: Event) -> tuple[int, int, int]:
    return hash_id("user_id", event.user_id), hash_id("item_id", event.item_id), event.ts_ms


# -- determinism


@pytest.mark.parametrize("mode", ["exposure", "implicit"])
def test_the_batches_do_not_depend_on_how_records_were_polled(mode: str) -> None:
    settings, records = _settings(mode), _records(_shop(60, 1))
    whole = _run(settings, records).pieces()
    assert len(_batches(whole)) > 10
    assert len(_barriers(whole)) > 2
    for max_records in (1, 7):
        _assert_same(_run(settings, records, max_records=max_records).pieces(), whole)
    paused = [entry for record in records for entry in (record, PAUSE)]
    _assert_same(_run(settings, paused, max_records=3).batches(), _batches(whole))


@pytest.mark.parametrize("mode", ["exposure", "implicit"])
@pytest.mark.parametrize("n_partitions", [1, 2])
def test_a_run_restored_at_any_barrier_goes_on_bit_for_bit(mode: str, n_partitions: int) -> None:
    settings = _settings(
        mode,
        snapshot={"every": "1h", "every_events": 20},
        evaluation={"ranking": {"content_view": 0.5}},
        events={"lateness": "3s", "max_open": 40, "orphans": "synthesize", "deduplicate": "30s"},
        features={"users": 16, "items": 16, "history_length": 3, "recent_items": 32, "half_lives": ["1m", "1h"]},
    )
    events = [_shop(50, seed, first_user=100 * seed) for seed in range(n_partitions)]
    partitions = [
        _records([copy for event in shop for copy in [event] * (1 + (event.ts_ms % 7 == 0))], partition)
        for partition, shop in enumerate(events)
    ]
    whole = _run(settings, *partitions, max_records=1).pieces()
    # A resumed source begins with its first partition: only where that was next do records come in the same order.
    cuts = [
        (place, piece)
        for place, piece in enumerate(whole)
        if isinstance(piece, Barrier) and (len(set(piece.offsets.values())) == 1 or piece is whole[-1])
    ]
    assert len(cuts) > 3
    for cut, barrier in cuts:
        rest = _run(settings, *partitions, max_records=1)
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(barrier.state))
        rest.ingest.restore(barrier.groups, state)
        rest.source.seek(barrier.offsets)
        assert rest.ingest.n_events == barrier.n_events
        _assert_same(rest.pieces(), whole[cut + 1 :] or [barrier])


@profile(deadline=None, max_examples=20)
@given(st.integers(1, 150), st.sampled_from(["exposure", "implicit"]))
def test_a_run_that_was_stopped_after_any_record_goes_on_bit_for_bit(n_taken: int, mode: str) -> None:
    """The batch that was open is part of the barrier."""
    settings, records = _settings(mode), _records(_shop(30, 2))
    head = _run(settings, records, max_records=1, stop=_after(n_taken)).pieces()
    barrier = head[-1]
    assert isinstance(barrier, Barrier)
    assert barrier.offsets == {("events", 0): barrier.n_events}
    rest = _run(settings, records)
    rest.ingest.restore(barrier.groups, msgspec.msgpack.decode(msgspec.msgpack.encode(barrier.state)))
    rest.source.seek(barrier.offsets)
    _assert_same([*_batches(head), *rest.batches()], _run(settings, records).batches())


def _after(n_calls: int) -> Callable[[], bool]:
    """True from the call behind the first ``n_calls`` on; the pipeline asks first, then after each poll and batch."""
    calls = iter(range(n_calls))
    return lambda: next(calls, None) is None


# -- barriers


def test_a_barrier_stands_behind_the_events_of_the_batches_before_it() -> None:
    settings = _settings(snapshot={"every": "1h", "every_events": 20})
    first, second = _shop(40, 3), _shop(40, 4, first_user=50)
    run = _run(settings, _records(first), _records(second, 1), max_records=5)
    n_events, newest_ms = 0, -1
    for piece in run.pieces():
        if isinstance(piece, Batch):
            n_events += piece.n_events
            continue
        taken = [*first[: piece.offsets["events", 0]], *second[: piece.offsets["events", 1]]]
        assert piece.n_events == n_events == len(taken)
        assert piece.event_time_ms == max(event.ts_ms for event in taken) > newest_ms
        newest_ms = piece.event_time_ms
    assert n_events == len(first) + len(second)


def test_a_barrier_names_partitions_that_gave_no_record_yet() -> None:
    later = [PAUSE, Record("events", 1, 41, None, b"{}")]
    run = _run(_settings(), _records(_shop(3, 5)), later, max_records=4, stop=_after(1))
    barrier = _barriers(run.pieces())[-1]
    assert barrier.offsets == {("events", 0): 4, ("events", 1): 41}


def test_a_barrier_is_due_by_events_or_by_the_wall_clock() -> None:
    records = _records(_shop(60, 6))
    by_events = _barriers(_run(_settings(), records).pieces())
    assert len(by_events) > 3
    for before, after in pairwise(by_events[:-1]):
        assert 50 <= after.n_events - before.n_events < 100
    ticks = itertools.count(NOW_MS, 400)
    by_clock = _run(_settings(snapshot={"every": "1s"}), records, clock_ms=lambda: next(ticks)).pieces()
    assert len(_barriers(by_clock)) > 3
    _assert_same(_batches(by_clock), _run(_settings(), records).batches())


def test_a_delta_is_due_by_the_wall_clock_once_the_cut_before_it_was_released() -> None:
    records, ticks = _records(_shop(60, 6)), itertools.count(NOW_MS, 400)
    small: dict[str, Any] = {"max_rows": 8, "min_rows": 6}
    settings = _settings(snapshot={"every": "1h", "every_events": 100, "delta_seconds": 1.0}, batch=small)
    run = _run(settings, records, clock_ms=lambda: next(ticks))
    pieces: list[Piece] = []
    for piece in run.ingest.stream():
        pieces.append(piece)
        if isinstance(piece, Barrier) and len(pieces) % 3:
            piece.release()
    cuts = _barriers(pieces)
    deltas = [cut for cut in cuts if cut.is_delta]
    assert len(deltas) > 3
    assert 2 <= len(cuts) - len(deltas) <= 5
    for before, after in pairwise(pieces):
        if isinstance(after, Barrier) and after.is_delta:
            assert isinstance(before, Batch)
    for place, piece in enumerate(pieces):
        if isinstance(piece, Barrier) and (place + 1) % 3 == 0:
            later = [one for one in pieces[place + 1 :] if isinstance(one, Barrier)]
            assert not later or not later[0].is_delta
    _assert_same(_batches(pieces), _run(_settings(batch=small), records).batches())


def test_a_whole_cut_and_the_deltas_behind_it_hold_the_profiles_of_their_moment() -> None:
    settings = _settings()
    run = _run(settings, _records(_shop(60, 6)))
    follower = _run(settings).ingest.profiles
    n_deltas = 0
    for piece in run.ingest.stream():
        cut = piece if isinstance(piece, Barrier) else run.ingest.delta()
        n_deltas += cut.is_delta
        assert set(cut.groups) == ({"profiles"} if cut.is_delta else {"profiles", "join", "seen", "open_batch"})
        load_profiles(follower, cut.groups["profiles"])
        for found, wanted in zip(
            save_profiles(follower).values(), save_profiles(copy_profiles(run.ingest.profiles)).values(), strict=True
        ):
            np.testing.assert_array_equal(found, wanted)
    assert n_deltas > 10


def test_a_quiet_stream_is_saved_with_its_open_batch() -> None:
    """Nothing more comes, no batch closes: the events that came are in a barrier all the same."""
    ticks = itertools.count(NOW_MS, 400)
    run = _run(
        _settings(snapshot={"every": "1s"}, batch={"max_rows": 24, "min_rows": 24, "span": "1h"}),
        [*_records([_event("content_view", 1, 1, 0)]), PAUSE, PAUSE, PAUSE, PAUSE],
        clock_ms=lambda: next(ticks),
    )
    first = next(run.ingest.stream())
    assert isinstance(first, Barrier)
    assert (first.n_events, first.offsets) == (1, {("events", 0): 1})


def test_the_last_barrier_stands_at_the_end_even_of_an_empty_source() -> None:
    assert [type(piece) for piece in _run(_settings(), []).pieces()] == [Barrier]
    assert isinstance(_run(_settings(), _records(_shop(5, 5))).pieces()[-1], Barrier)


def test_bad_records_are_flushed_before_the_barrier_behind_them() -> None:
    run = _run(_settings(), _records([b"not json"]))
    flushed: list[int] = []
    run.letters.flush = lambda _: flushed.append(len(run.letters.letters))  # type: ignore[method-assign]
    run.pieces()
    assert flushed == [1]


# -- bad records and duplicates


def test_bad_records_go_to_the_dead_letters_and_change_nothing_else() -> None:
    settings, events = _settings(), _shop(30, 7)
    bad = [b"not json", b"", b'{"event_id": 1}', msgspec.json.encode(_event("rating", 1, 1, 0))]
    mixed: list[Event | bytes] = []
    for n, event in enumerate(events):
        mixed += [bad[n % 4], event] if n % 3 == 0 else [event]
    clean, dirty = _run(settings, _records(events)), _run(settings, _records(mixed))
    _assert_same(dirty.batches(), clean.batches())
    wanted = [record for record in _records(mixed) if record.value in bad]
    assert [letter.record for letter in dirty.letters.letters] == wanted
    assert dirty.ingest.n_rejected == len(wanted)
    reasons = Counter(letter.reason for letter in dirty.letters.letters)
    assert set(reasons) == {"not_json", "missing_field", "unknown_type"}
    for reason, count in reasons.items():
        assert dirty.count("events_rejected_total", reason=reason) == count
        assert dirty.count("dlq_messages_total", reason=reason) == count
    assert clean.count("events_rejected_total", reason="not_json") == 0


def test_an_event_that_comes_again_is_dropped_and_counted() -> None:
    settings, events = _settings(), _shop(30, 8)
    again = [copy for n, event in enumerate(events) for copy in [event] * (1 + n % 3)]
    once, repeated = _run(settings, _records(events)), _run(settings, _records(again))
    _assert_same(repeated.batches(), once.batches())
    assert repeated.count("events_duplicate_total") == len(again) - len(events)
    assert once.count("events_duplicate_total") == 0
    for type_ in TYPES:
        n_events = sum(event.type == type_ for event in events)
        assert repeated.count("events_consumed_total", topic="events", event=type_) == n_events


def test_an_attribute_that_is_a_list_does_not_stop_the_stream() -> None:
    events = [_event("content_view", 1, 1, 0, item={"brand": ["a", "b"], "price": [1]})]
    assert len(_run(_settings(), _records(events)).batches()[0].rows) == 1


def test_a_number_beyond_a_column_does_not_spoil_those_after_it() -> None:
    prices = [1.0, 3.0, 1e300, -1e39, 2.0, 2.5]
    events = [_event("content_view", 1, n, n, item={"price": price}) for n, price in enumerate(prices)]
    batches = _run(_settings(), _records(events)).batches()
    assert all(np.isfinite(batch.rows.dense).all() for batch in batches)


# -- batches


def test_a_batch_never_splits_a_request() -> None:
    settings = _settings(batch={"max_rows": 4, "min_rows": 1, "span": "1ms"})
    events = [event for event in _shop(40, 9) if event.type == "content_view"]
    batches = _run(settings, _records(events)).batches()
    assert len(batches) > 20
    lists = [set(batch.list_id[batch.list_id != 0].tolist()) for batch in batches]
    assert sum(map(len, lists)) == len(set().union(*lists)) == 40


def test_a_batch_closes_by_rows_and_by_event_time() -> None:
    views = [_event("content_view", 1, n % 5, 1_000 * n, event_id=n) for n in range(100)]
    by_rows = _settings(negatives={"exposure": 0}, batch={"max_rows": 10, "min_rows": 1, "span": "9d"})
    assert [len(b.rows) for b in _run(by_rows, _records(views)).batches()[:3]] == [10, 10, 10]
    by_time = _settings(negatives={"exposure": 0}, batch={"max_rows": 1000, "min_rows": 1, "span": "7s"})
    batches = _run(by_time, _records(views)).batches()
    assert [batch.n_events for batch in batches[:3]] == [7, 7, 7]
    assert [batch.first_event_ms - NOW_MS for batch in batches[:3]] == [0, 7_000, 14_000]


def test_the_watermark_is_that_of_the_slowest_partition() -> None:
    slow, fast = _event("content_view", 1, 1, 10_000), _event("content_view", 2, 2, 90_000)
    batch = _run(_settings(), _records([slow]), _records([fast], 1)).batches()[-1]
    assert batch.watermark_ms == NOW_MS + 10_000 - 3_000


def test_a_leap_of_time_gives_its_many_labels_in_portions() -> None:
    settings = _settings(batch={"max_rows": 8, "min_rows": 1, "span": "1s"})
    views = [_event("content_view", n % 9, n % 30, n, event_id=n) for n in range(300)]
    late = _event("content_view", 1, 1, 10_000_000)
    straight = _run(settings, _records([*views, late]))
    batches = straight.batches()
    assert max(len(batch.matured_slot) for batch in batches) <= 8 * MOST_BATCHES
    assert sum(batch.n_events for batch in batches) == 301
    labels = _matured(batches)
    assert len(labels) == 300
    assert all(known == {CLICK: False, PURCHASE: False} for known in labels.values())


# -- exposure mode


def test_each_exposure_is_labelled_as_its_own_outcomes_and_windows_say() -> None:
    events = [event for event in _shop(80, 10) if event.type == "content_view" or event.request_id]
    end = _event("content_view", 999, 1, 10_000_000)
    labels = _matured(_run(_settings(), _records([*events, end])).batches())
    exposures = {(e.request_id, e.item_id): e for e in events if e.type == "content_view"}
    wanted = {_key(exposure): {CLICK: False, PURCHASE: False} for exposure in exposures.values()}
    for event in events:
        task = TYPES.index(event.type)
        if task != VIEW:
            exposure = exposures[event.request_id, event.item_id]
            wanted[_key(exposure)][task] |= event.ts_ms - exposure.ts_ms <= (30_000, 120_000)[task - 1]
    assert labels == wanted
    assert 0 < sum(known[CLICK] for known in wanted.values()) < len(wanted)


def test_an_outcome_trains_on_the_row_of_its_exposure_and_gives_none_itself() -> None:
    shown = [_event("content_view", 1, item, 0, "r") for item in (1, 2)]
    events = [*shown, _event("click", 1, 2, 5, "r"), _event("content_view", 1, 1, 9)]
    batch = _run(_settings(negatives={"exposure": 0}), _records(events)).batches()[0]
    assert batch.n_events == 4
    assert batch.rows.history[:, CLICK, 0].tolist() == [0, 0, hash_id("item_id", 2)]
    assert len(set(batch.slot.tolist())) == 3
    assert batch.list_id.tolist() == [hash_id("request_id", "r")] * 2 + [0]


@pytest.mark.parametrize("delay", ["fnc_in_loss", "delay_head", "wait"])
def test_a_delayed_label_is_learned_as_its_task_says(delay: str) -> None:
    settings = _settings(
        tasks=[{"name": "content_view"}, {"name": "click", "window": "30s", "delay": delay, "wait": "5s"}],
        negatives={"exposure": 0},
        batch={"max_rows": 1, "min_rows": 1, "span": "1ms"},
    )
    events = [_event("content_view", 1, 1, 0), _event("click", 1, 1, 9_000), _event("content_view", 1, 2, 90_000)]
    batches = _run(settings, _records([*events, _event("content_view", 1, 3, 90_001)])).batches()
    shown = batches[0]
    assert (shown.known[0, CLICK], shown.labels[0, CLICK]) == (False, 0)
    assert shown.learn[0, CLICK] == (delay == "fnc_in_loss")
    became = [
        tuple(float(column[row, CLICK]) for column in columns)
        for batch in batches
        for columns in [(batch.matured_labels, batch.matured_known, batch.matured_learn, batch.matured_late)]
        for row in range(len(batch.matured_slot))
    ]
    assert (
        became
        == {
            "wait": [(1, True, True, False)],
            "fnc_in_loss": [(1, False, True, True), (1, True, False, False)],
            "delay_head": [(0, False, True, False), (1, False, True, True), (1, True, False, False)],
        }[delay]
    )


def test_the_exposure_is_a_positive_of_its_own_task_against_sampled_items() -> None:
    events = [_event("content_view", 1, item, n, event_id=n) for n, item in enumerate([1, 2, 1])]
    batch = _run(_settings(negatives={"exposure": 2}), _records(events)).batches()[0]
    assert batch.sampled.tolist() == [False, False, False, True, True]
    assert batch.known[:, VIEW].tolist() == [False, False, True, True, True]
    assert batch.labels[2:, VIEW].tolist() == [1, 0, 0]
    assert not batch.known[:, [CLICK, PURCHASE]].any()
    assert (batch.slot[:3] >= 0).all()
    assert batch.slot[3:].tolist() == [-1, -1]
    assert batch.rows.ids[3:, 1].tolist() == [hash_id("item_id", 2)] * 2


def test_a_new_item_is_counted_apart_but_waits_for_its_outcomes() -> None:
    events = [_event("content_view", 1, item, n) for n, item in enumerate([1, 2, 1])]
    events += [_event("click", 1, 2, 5), _event("content_view", 1, 1, 1_000_000)]
    batches = _run(_settings(), _records(events)).batches()
    assert sum(batch.new_item_events for batch in batches).tolist() == [2, 0, 0]
    labels = _matured(batches)
    assert labels[_key(events[1])] == {CLICK: True, PURCHASE: False}


def test_a_fraction_of_a_negative_goes_to_that_share_of_exposures_by_their_ids() -> None:
    batches = _run(_settings(negatives={"exposure": 1.5}), _records(_shop(400, 11))).batches()
    sampled = np.concatenate([batch.sampled for batch in batches])
    first = np.flatnonzero(~sampled)
    per_exposure = np.diff(np.append(first, len(sampled))) - 1
    per_exposure = per_exposure[per_exposure > 0]  # the others show items never seen before
    assert set(per_exposure.tolist()) == {1, 2}
    assert per_exposure.mean() == pytest.approx(1.5, abs=0.1)
    again = _run(_settings(negatives={"exposure": 1.5}), _records(_shop(400, 11))).batches()
    assert all(np.array_equal(one.sampled, other.sampled) for one, other in zip(batches, again, strict=True))


def test_without_negatives_the_exposure_has_no_task_of_its_own() -> None:
    batches = _run(_settings(negatives={"exposure": 0}), _records(_shop(10, 11))).batches()
    assert not any(batch.known.any() or batch.sampled.any() or batch.new_item_events.any() for batch in batches)


def test_an_impression_log_makes_the_view_an_outcome() -> None:
    settings = _settings(
        events={"exposure": "impression"},
        tasks=[{"name": "content_view", "window": "10s"}, {"name": "click", "window": "30s"}],
    )
    shown = [_event("impression", 1, 1, 0), _event("impression", 2, 1, 0)]
    events = [*shown, _event("content_view", 2, 1, 9_000), _event("impression", 3, 1, 60_000)]
    batches = _run(settings, _records(events)).batches()
    assert _matured(batches) == {_key(event): {VIEW: event is shown[1], CLICK: False} for event in shown}
    assert not any(batch.known.any() or batch.sampled.any() for batch in batches)


def test_late_and_orphan_outcomes_are_counted_and_still_remembered() -> None:
    events = [
        _event("content_view", 1, 1, 0),
        _event("click", 1, 1, 31_000),  # its window is 30 s
        _event("click", 2, 2, 32_000),  # nobody was shown it
        _event("purchase", 2, 2, 33_000),
        _event("content_view", 2, 1, 40_000),
    ]
    run = _run(_settings(), _records(events))
    last = run.batches()[-1]
    assert run.count("labels_late_total", task="click") == 1
    assert run.count("joiner_orphans_total", task="click") == 1
    assert run.count("joiner_orphans_total", task="purchase") == 1
    shown = np.flatnonzero(last.time_ms == NOW_MS + 40_000)[0]
    assert last.rows.history[shown, [CLICK, PURCHASE], 0].tolist() == [hash_id("item_id", 2)] * 2
    assert run.count("joiner_open_keys") == 2


def test_an_orphan_can_become_an_exposure_of_its_own() -> None:
    settings = _settings(events={"orphans": "synthesize"})
    click = _event("click", 2, 2, 1_000, "r")
    events = [click, _event("purchase", 2, 2, 5_000, "r"), _event("content_view", 1, 1, 1_000_000)]
    run = _run(settings, _records(events))
    batches = run.batches()
    assert _matured(batches) == {_key(click): {CLICK: True, PURCHASE: True}}
    assert run.count("joiner_orphans_total", task="click") == 0
    assert not any(batch.known.any() for batch in batches)


def test_beyond_the_cap_the_oldest_exposures_are_given_up_and_counted() -> None:
    settings = _settings(events={"max_open": 10})
    views = [_event("content_view", n, 1, n) for n in range(50)]
    run = _run(settings, _records([*views, _event("content_view", 99, 1, 1_000_000)]))
    labels = _matured(run.batches())
    assert labels.keys() == {_key(view) for view in views[-10:]}
    assert run.count("joiner_evicted_total") == 40


def test_at_the_end_of_a_log_the_open_windows_can_be_closed() -> None:
    run = _run(_settings(), _records(_shop(20, 12)))
    batches = run.batches()
    last = run.ingest.close_open_windows()
    assert (len(last.rows), last.n_events) == (0, 0)
    n_exposures = sum(event.type == "content_view" for event in _shop(20, 12))
    labels = _matured([*batches, last])
    assert len(labels) == n_exposures
    assert all(known.keys() == {CLICK, PURCHASE} for known in labels.values())


# -- implicit mode


def test_in_implicit_mode_every_event_is_a_positive_against_sampled_items() -> None:
    events = _shop(40, 13)
    batches = _run(_settings("implicit"), _records(events)).batches()
    seen: set[int | str] = set()
    wanted, new = [], Counter[str]()
    for event in events:
        if event.item_id in seen:
            wanted.append((*_key(event), TYPES.index(event.type)))
        else:
            new[event.type] += 1
        seen.add(event.item_id)
    found = []
    for batch in batches:
        task = batch.known.argmax(1)
        assert (batch.known.sum(1) == 1).all()
        assert (batch.slot == -1).all()
        assert not len(batch.matured_slot)
        for row in range(len(batch.rows)):
            key = (*batch.rows.ids[row, :2].tolist(), int(batch.time_ms[row]), int(task[row]))
            assert batch.labels[row, task[row]] == (not batch.sampled[row])
            if batch.sampled[row]:
                assert (key[0], *key[2:]) == (found[-1][0], *found[-1][2:])
                assert key[1] != found[-1][1]
            else:
                found.append(key)
    assert found == wanted
    assert sum(batch.new_item_events for batch in batches).tolist() == [new[type_] for type_ in TYPES]
    n_sampled = sum(int(batch.sampled.sum()) for batch in batches)
    assert 0 <= 3 * len(wanted) - n_sampled < 0.05 * len(wanted)


def test_a_share_of_the_events_is_ranked_the_same_ones_in_every_run() -> None:
    rng = np.random.default_rng(0)
    views = [_event("content_view", n % 7, item, n) for n, item in enumerate(rng.integers(0, 300, 1500).tolist())]
    settings = _settings(
        "implicit",
        features={"users": 64, "items": 1000, "history_length": 3, "half_lives": ["1m", "1h"]},
        evaluation={"ranking": {"content_view": 0.25}},
    )
    groups = [batch.ranking for batch in _run(settings, _records(views)).batches() if batch.ranking is not None]
    n_groups = sum(len(group.task) for group in groups)
    assert 0.15 * 1500 < n_groups < 0.3 * 1500
    for group in groups:
        assert (group.task == VIEW).all()
        assert len(group.rows) == group.tie_breaks.size == 100 * len(group.task)
    again = [batch.ranking for batch in _run(settings, _records(views)).batches() if batch.ranking is not None]
    _assert_same(again, groups)


# -- truth


def test_the_simulators_truth_travels_with_the_shown_rows() -> None:
    truth = {"click": 0.25, "purchase": 0.5}
    events = [_event("content_view", 1, item, n, event_id=n, truth=truth) for n, item in enumerate([1, 2, 1])]
    batch = _run(_settings(negatives={"exposure": 1}), _records(events)).batches()[0]
    assert batch.truth is not None
    np.testing.assert_array_equal(batch.truth[~batch.sampled], np.array([[np.nan, 0.25, 0.5]] * 3, np.float32))
    assert np.isnan(batch.truth[batch.sampled]).all()
    assert all(batch.truth is None for batch in _run(_settings(), _records(_shop(5, 14))).batches())
