import pytest

from contracts.records import Record
from streamer.sources.memory import ABORT, EOF, PAUSE, AbortError, MemorySource
from streamer.testing import records_of

A = ("events", 0)


def test_a_pause_makes_one_poll_return_nothing() -> None:
    first, second = records_of([b"1", b"2"])
    source = MemorySource({A: [first, PAUSE, second]})
    assert [source.poll(0), source.poll(0), source.poll(0)] == [[first], [], [second]]


def test_what_stands_before_an_abort_is_returned_first() -> None:
    first, second = records_of([b"1", b"2"])
    source = MemorySource({A: [first, ABORT, second]})
    assert source.poll(0) == [first]
    with pytest.raises(AbortError, match="before offset 1"):
        source.poll(0)


def test_a_source_that_resumes_at_an_abort_passes_it() -> None:
    first, second = records_of([b"1", b"2"])
    source = MemorySource({A: [first, ABORT, second]})
    source.seek({A: 1})
    assert source.poll(0) == [second]


def test_an_eof_ends_this_source_and_the_next_goes_on_behind_it() -> None:
    records = records_of([b"1", b"2", b"3"])
    entries = {A: [records[0], EOF, *records[1:]]}
    first = MemorySource(entries)
    assert first.lag() == {A: 1}
    assert first.poll(0) == records[:1]
    assert first.ended
    second = MemorySource(entries)
    second.seek(first.position())
    assert not second.ended
    assert second.poll(0) == records[1:]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([Record("other", 0, 0, None, b"")], "must name it"),
        ([Record("events", 0, 1, None, b""), Record("events", 0, 1, None, b"")], "must rise; found 1 after 1"),
    ],
)
def test_records_that_no_partition_could_hold_are_refused(records: list[Record], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemorySource({A: records})


@pytest.mark.parametrize("offsets", [{("other", 0): 0}, {A: 3}, {A: -1}])
def test_seeking_where_nothing_is_says_so(offsets: dict[tuple[str, int], int]) -> None:
    source = MemorySource({A: records_of([b"1", b"2"])})
    with pytest.raises(ValueError, match=r"Unknown partition|must be within 0 to 2"):
        source.seek(offsets)
