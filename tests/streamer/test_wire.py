"""Objects with arrays cross through shared memory as they are."""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.batch import Barrier
from streamer.wire import Segment


def _barrier(**arrays: NDArray[Any]) -> Barrier:
    return Barrier({("topic", 3): 7}, {"group": arrays}, {"list": [1, None, "x"]}, -1, 12)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.array([[True, False]]),
        np.float32([np.nan, -0.0, np.inf]),
        np.empty((0, 4), np.uint8),
        np.float64(2.5).reshape(()),
        np.arange(24).reshape(4, 6)[:, ::2],
        np.asfortranarray(np.arange(6).reshape(2, 3)),
    ],
    ids=["integers", "bools", "floats", "empty", "scalar", "strided", "fortran"],
)
def test_an_array_of_any_shape_and_type_comes_as_it_went(array: NDArray[Any]) -> None:
    segment = Segment()
    sent = _barrier(first=np.ones(3, np.uint8), array=array, last=np.arange(5))
    found = segment.read(segment.write(sent))
    assert (found.offsets, found.state, found.event_time_ms, found.n_events) == (sent.offsets, sent.state, -1, 12)
    for name, one in sent.groups["group"].items():
        other = found.groups["group"][name]
        assert (other.dtype, other.shape, other.tobytes()) == (one.dtype, one.shape, one.tobytes())
    segment.close()


def test_the_bytes_of_arrays_are_not_in_the_message_and_not_copied_by_the_reader() -> None:
    segment = Segment()
    message = segment.write(_barrier(large=np.zeros(1_000_000)))
    assert len(message.head) < 1_000
    first, second = (segment.read(message).groups["group"]["large"] for _ in range(2))
    first[5] = 1.0
    assert second[5] == 1.0
    segment.close()


def test_a_segment_grows_with_its_content_and_what_was_read_before_stays_valid() -> None:
    segment = Segment()
    small = segment.read(segment.write(np.arange(10)))
    large = segment.read(segment.write(np.full(3_000_000, 7)))
    assert (large == 7).all()
    segment.close()
    assert len(small) == 10
    assert small[0] == 7, "both lie in the same memory"


def _double(segment: Segment, message: Any, connection: Any) -> None:
    connection.send(segment.write(segment.read(message) * 2))


def test_a_process_that_is_started_with_a_segment_shares_its_memory(tmp_path: Path) -> None:
    segment = Segment()
    message = segment.write(np.arange(100_000))
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_double, args=(segment, message, theirs))
    process.start()
    assert (segment.read(ours.recv()) == 2 * np.arange(100_000)).all()
    process.join()
    process.close()
    for connection in (ours, theirs):
        connection.close()
    segment.close()
    shared = Path("/dev/shm")
    assert not shared.exists() or not [file for file in shared.iterdir() if "anabranch" in file.name]
