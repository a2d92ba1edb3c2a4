"""The buffer: when a batch closes, and what its columns hold."""

import numpy as np
import pytest

from contracts.events import Event
from contracts.settings import BatchSettings, Settings
from features.hashing import hash_id
from features.schema import FeatureSchema
from streamer.batching import MOST_BATCHES, EventBuffer

SETTINGS = Settings.model_validate({"fields": [{"source": "item.brand"}, {"source": "user.age", "kind": "numeric"}]})


def _buffer(max_rows: int = 6, min_rows: int = 3, span: str = "10ms") -> EventBuffer:
    batch = BatchSettings.model_validate({"max_rows": max_rows, "min_rows": min_rows, "span": span})
    return EventBuffer(FeatureSchema.of(SETTINGS), ("click", "purchase"), batch)


def _event(ts_ms: int = 0, request_id: str | None = None, **fields: object) -> Event:
    return Event(event_id="e", type="click", user_id=1, item_id=1, ts_ms=ts_ms, request_id=request_id, **fields)  # type: ignore[arg-type]


def _filled(n_rows: int, ts_ms: int = 100, request_id: str | None = None, **kwargs: int) -> EventBuffer:
    buffer = _buffer(**kwargs)
    for _ in range(n_rows):
        buffer.add(_event(ts_ms, request_id), 0, 1, 1, emit=True)
    return buffer


def test_a_batch_closes_when_it_is_full() -> None:
    assert not _filled(5).due(100, None, 0)
    assert _filled(6).due(100, None, 0)


def test_a_batch_closes_after_its_span_if_it_is_worth_a_step() -> None:
    assert not _filled(3).due(109, None, 0)
    assert _filled(3).due(110, None, 0)
    assert not _filled(2).due(10_000, None, 0)


def test_matured_labels_and_sampled_items_fill_a_batch_too() -> None:
    assert _filled(2).due(100, None, 4)
    buffer = _buffer()
    buffer.add(_event(), 0, 1, 1, emit=True, negatives=5)
    assert buffer.due(0, None, 0)


def test_events_without_a_row_do_not_fill_a_batch() -> None:
    buffer = _buffer()
    for _ in range(20):
        buffer.add(_event(), 0, 1, 1)
    assert (buffer.n_events, buffer.n_rows) == (20, 0)
    assert not buffer.due(10_000, None, 0)


def test_a_request_is_not_split_unless_it_is_absurdly_long() -> None:
    assert not _filled(8, request_id="r").due(10_000, "r", 0)
    assert _filled(8, request_id="r").due(100, "s", 0)
    assert _filled(6 * MOST_BATCHES, request_id="r").due(100, "r", 0)


@pytest.mark.parametrize("request_id", [None, ""])
def test_events_of_no_request_are_not_one_request(request_id: str | None) -> None:
    assert _filled(6, request_id=request_id).due(100, request_id, 0)


def test_an_empty_buffer_is_never_due_for_time() -> None:
    assert not _buffer().due(1 << 50, None, 0)
    assert _buffer().due(0, None, 6)


def test_columns_hold_the_events_in_order_and_the_buffer_is_empty_again() -> None:
    buffer = _buffer()
    buffer.add(_event(7, item={"brand": "x"}, truth={"click": 0.5}), 0, 10, 20, emit=True, slot=3, task=1, list_id=9)
    buffer.add(_event(8, user={"age": 30}), 1, 11, 21, keep=True, negatives=2, rank=True)
    assert buffer.first_event_ms == 7
    columns, slot, task, list_id, truth = buffer.take()
    for name, wanted in {
        "kind": [0, 1],
        "user": [10, 11],
        "item": [20, 21],
        "time_ms": [7, 8],
        "emit": [1, 0],
        "keep": [0, 1],
        "negatives": [0, 2],
        "rank": [0, 1],
        "item_attributes": [[hash_id("item.brand", "x")], [0]],
        "item_numbers": [[], []],
        "user_attributes": [[], []],
        "user_numbers": [[np.nan], [30]],
        "context_attributes": [[], []],
        "context_numbers": [[], []],
    }.items():
        np.testing.assert_array_equal(getattr(columns, name), wanted, err_msg=name)
    assert (slot.tolist(), task.tolist(), list_id.tolist()) == ([3, -1], [1, -1], [9, 0])
    np.testing.assert_array_equal(truth, np.array([[0.5, np.nan], [np.nan, np.nan]], np.float32))
    assert (buffer.n_events, buffer.n_rows) == (0, 0)
    assert buffer.take()[4] is None


def test_a_stream_without_truth_has_none() -> None:
    assert _filled(2).take()[4] is None
