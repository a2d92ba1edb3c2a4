"""Reading ahead changes when pieces are made, not what they are."""

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from contracts.batch import Barrier, Batch
from streamer.prefetch import Prefetched

PATIENCE_SECONDS = 10


def _barrier(n_events: int = 0) -> Barrier:
    return Barrier({}, {}, {}, 0, n_events)


def _batch(name: Any) -> Batch:
    return cast(Batch, name)  # the thread only passes it on


def _n_threads() -> int:
    return sum(thread.name == "anabranch-ingest" for thread in threading.enumerate())


def test_pieces_come_in_order_and_the_end_is_told() -> None:
    pieces = [_batch(n) if n % 5 else _barrier(n) for n in range(40)]
    with Prefetched(iter(pieces), depth=2) as stream:
        read = []
        for piece in stream:
            read.append(piece)
            if isinstance(piece, Barrier):
                piece.release()
        assert [getattr(piece, "n_events", piece) for piece in read] == list(range(40))
    assert _n_threads() == 0


def test_the_stream_goes_on_behind_a_barrier_but_not_behind_a_second_one_before_the_first_is_released() -> None:
    behind_the_second = threading.Event()

    def pieces() -> Iterator[Batch | Barrier]:
        yield _barrier(1)
        yield _batch(1)
        yield _barrier(2)
        behind_the_second.set()
        yield _batch(2)

    with Prefetched(pieces()) as stream:
        iterator = iter(stream)
        first = next(iterator)
        assert isinstance(first, Barrier)
        assert next(iterator) == 1
        assert not behind_the_second.wait(0.2)
        first.release()
        assert isinstance(next(iterator), Barrier)
        assert next(iterator) == 2
        assert behind_the_second.is_set()


def test_the_stream_is_read_ahead_but_not_without_bound() -> None:
    made: list[int] = []
    three = threading.Event()

    def pieces() -> Iterator[Batch | Barrier]:
        for n in range(100):
            made.append(n)
            if n == 3:
                three.set()
            yield _batch(n)

    with Prefetched(pieces(), depth=3) as stream:
        assert three.wait(PATIENCE_SECONDS)
        assert next(iter(stream)) == 0
        assert len(made) <= 6


def test_an_error_of_the_stream_is_raised_behind_the_pieces_before_it() -> None:
    def pieces() -> Iterator[Batch | Barrier]:
        yield _batch(1)
        raise OSError("the broker is gone")

    with Prefetched(pieces()) as stream:
        iterator = iter(stream)
        assert next(iterator) == 1
        with pytest.raises(OSError, match="the broker is gone"):
            next(iterator)
    assert _n_threads() == 0


@pytest.mark.parametrize("n_read", [0, 1, 2])
def test_who_leaves_early_leaves_no_thread_behind(n_read: int) -> None:
    def pieces() -> Iterator[Batch | Barrier]:
        yield _batch(1)
        yield _barrier()
        yield _barrier()
        while True:
            yield _batch(2)

    with Prefetched(pieces(), depth=1) as stream:
        iterator = iter(stream)
        for _ in range(n_read):
            next(iterator)
    assert _n_threads() == 0


def test_an_error_of_the_reader_is_not_hidden() -> None:
    def read() -> None:
        with Prefetched(iter([_barrier(), _batch(1)])) as stream:
            for _ in stream:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    assert _n_threads() == 0
