"""The laws of `sources/_base.py` as functions: every source's test runs each of them; and what such tests need.

A test is parametrised over :data:`SOURCE_LAWS` and calls ``law(case)``.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from contracts.records import Offsets, Partition, Record
from streamer.sources._base import Source
from streamer.sources.memory import ABORT, EOF, PAUSE, AbortError, Marker

__all__ = ["ABORT", "EOF", "PAUSE", "SOURCE_LAWS", "AbortError", "Marker", "SourceCase", "drain", "records_of"]


@dataclass(frozen=True)
class SourceCase:
    """A source to test and what it must hold.

    :param open: a new source over the same records, at their beginning.
    :param records: all of them; within a partition in offset order.
    :param done: whether a source has returned everything; a stream without end needs another answer than ``ended``.
    :param n_cuts: positions that the resume law tries.
    """

    open: Callable[[], Source]
    records: Sequence[Record]
    done: Callable[[Source], bool] = lambda source: source.ended
    bounded: bool = True
    n_cuts: int = 8
    patience_seconds: float = 30.0


def records_of(values: Iterable[bytes], topic: str = "events", partition: int = 0) -> list[Record]:
    """Records with these values, offsets from 0, without keys."""
    return [Record(topic, partition, offset, None, value) for offset, value in enumerate(values)]


def drain(source: Source, case: SourceCase, n_records: int | None = None) -> list[Record]:
    """What ``poll`` returns until the source is done, or has returned at least ``n_records``.

    :raises AssertionError: it is not done within the case's patience.
    """
    records: list[Record] = []
    deadline_seconds = time.monotonic() + case.patience_seconds
    while (n_records is None or len(records) < n_records) and not case.done(source):
        records += source.poll(100)
        _require(time.monotonic() < deadline_seconds, f"not done in time; {len(records)} of {len(case.records)} read")
    return records


def assert_every_record_comes_once_and_in_order(case: SourceCase) -> None:
    """Law 1."""
    source = case.open()
    try:
        _require_same(drain(source, case), case.records)
    finally:
        source.close()


def assert_position_follows_poll(case: SourceCase) -> None:
    """Law 2: after each poll, the position is one beyond the last record of each partition that came."""
    source = case.open()
    try:
        seen: Offsets = {}
        deadline_seconds = time.monotonic() + case.patience_seconds
        while not case.done(source):
            for record in source.poll(100):
                seen[record.topic, record.partition] = record.offset + 1
            position = source.position()
            for partition, offset in seen.items():
                _require(position.get(partition) == offset, f"position of {partition}: {position}, read up to {offset}")
            _require(time.monotonic() < deadline_seconds, "not done in time")
        first = source.position()
        first.clear()
        _require(not seen or bool(source.position()), "position() must return a copy that the caller may change")
    finally:
        source.close()


def assert_a_new_source_resumes_at_any_cut(case: SourceCase) -> None:
    """Law 3: cut anywhere, seek a new source there: together they return every record once."""
    step = max(1, len(case.records) // case.n_cuts)
    for n_records in range(0, len(case.records) + 1, step):
        first, second = case.open(), None
        try:
            head = drain(first, case, n_records)
            position = first.position()
            first.close()
            second = case.open()
            second.seek(position)
            _require_same(head + drain(second, case), case.records)
        finally:
            first.close()
            if second is not None:
                second.close()


def assert_an_offset_between_polls_can_be_resumed(case: SourceCase) -> None:
    """Law 3, at offsets that no poll ended on: the middle of each partition."""
    middles: Offsets = {}
    for partition in _partitions(case):
        offsets = [record.offset for record in case.records if (record.topic, record.partition) == partition]
        middles[partition] = offsets[len(offsets) // 2]
    source = case.open()
    try:
        source.seek(middles)
        wanted = [record for record in case.records if record.offset >= middles[record.topic, record.partition]]
        _require_same(drain(source, case), wanted)
    finally:
        source.close()


def assert_an_unnamed_partition_starts_at_its_beginning(case: SourceCase) -> None:
    """``seek`` with the first partition only: the others come whole."""
    named = _partitions(case)[0]
    end = max(record.offset for record in case.records if (record.topic, record.partition) == named) + 1
    source = case.open()
    try:
        source.seek({named: end})
        wanted = [record for record in case.records if (record.topic, record.partition) != named]
        _require_same(drain(source, case), wanted)
    finally:
        source.close()


def assert_the_end_is_told(case: SourceCase) -> None:
    """Law 4: a bounded source ends and then returns nothing; a stream never ends."""
    source = case.open()
    try:
        drain(source, case)
        _require(source.ended == case.bounded, f"ended is {source.ended} after the last record")
        _require(source.poll(10) == [], "poll must return nothing after the last record")
    finally:
        source.close()


def assert_the_lag_goes_to_zero(case: SourceCase) -> None:
    """The lag is never negative, never more than there is, and zero once all was read."""
    source = case.open()
    try:
        deadline_seconds = time.monotonic() + case.patience_seconds
        while not case.done(source):
            source.poll(100)
            lag = source.lag()
            _require(all(0 <= n <= len(case.records) for n in lag.values()), f"lag {lag}")
            _require(time.monotonic() < deadline_seconds, "not done in time")
        lag = source.lag()
        _require(set(lag) == set(_partitions(case)) and not any(lag.values()), f"lag at the end: {lag}")
    finally:
        source.close()


def assert_commit_does_not_move_the_reader(case: SourceCase) -> None:
    """Law 5: committing the end while standing at the beginning changes nothing, here and in the next source."""
    ends: Offsets = {}
    for record in case.records:
        ends[record.topic, record.partition] = record.offset + 1
    for _ in range(2):
        source = case.open()
        try:
            source.seek({})
            first = source.poll(100)
            source.commit(ends)
            _require_same(first + drain(source, case), case.records)
        finally:
            source.close()


def assert_close_twice_is_fine(case: SourceCase) -> None:
    """Before anything was read, and again."""
    source = case.open()
    source.close()
    source.close()


SOURCE_LAWS: tuple[Callable[[SourceCase], None], ...] = (
    assert_every_record_comes_once_and_in_order,
    assert_position_follows_poll,
    assert_a_new_source_resumes_at_any_cut,
    assert_an_offset_between_polls_can_be_resumed,
    assert_an_unnamed_partition_starts_at_its_beginning,
    assert_the_end_is_told,
    assert_the_lag_goes_to_zero,
    assert_commit_does_not_move_the_reader,
    assert_close_twice_is_fine,
)


def _partitions(case: SourceCase) -> list[Partition]:
    return sorted({(record.topic, record.partition) for record in case.records})


def _require_same(found: Sequence[Record], wanted: Sequence[Record]) -> None:
    for partition in sorted({(record.topic, record.partition) for record in [*found, *wanted]}):
        got, want = (
            [
                (record.offset, record.key, record.value)
                for record in records
                if (record.topic, record.partition) == partition
            ]
            for records in (found, wanted)
        )
        if got == want:
            continue
        place = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))
        _require(
            False,
            f"{partition}: {len(got)} records for {len(want)}; first difference at {place}: "
            f"{got[place : place + 2]} for {want[place : place + 2]}",
        )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
