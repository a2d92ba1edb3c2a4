"""The buffer: when a batch closes, and what its columns hold."""

import numpy as np
import pytest

from contracts.settings import BatchSettings, Settings
from features.schema import FeatureSchema
from streamer.batching import MOST_BATCHES, N_INTEGERS, EventBuffer, Piece, count, due

SETTINGS = Settings.model_validate({"fields": [{"source": "item.brand"}, {"source": "user.age", "kind": "numeric"}]})
NO_REQUEST = 0
USER, ITEM = 5, 6


def _buffer(max_rows: int = 6, min_rows: int = 3, span: str = "10ms") -> EventBuffer:
    batch = BatchSettings.model_validate({"max_rows": max_rows, "min_rows": min_rows, "span": span})
    return EventBuffer(FeatureSchema.of(SETTINGS), 2, batch)


def _due(buffer: EventBuffer, now_ms: int, request: int, n_matured: int) -> bool:
    return bool(due(buffer.counts, buffer.limits, now_ms, request, USER, ITEM + 1, n_matured))


def _filled(n_rows: int, ts_ms: int = 100, request: int = NO_REQUEST, **kwargs: int) -> EventBuffer:
    buffer = _buffer(**kwargs)
    for _ in range(n_rows):
        count(buffer.counts, ts_ms, request, USER, ITEM, 1)
    return buffer


def _piece(first: int, n_events: int, *, told: bool = False) -> Piece:
    """Events of the kinds ``first``, ``first + 1``, …; every other column tells the kind, too."""
    kinds = np.arange(first, first + n_events)
    integers = np.stack([kinds + 100 * place for place in range(N_INTEGERS)])
    hashes = (kinds[:, None] * 7, np.zeros((n_events, 0), np.int64), np.zeros((n_events, 0), np.int64))
    ages = (kinds[:, None] / 2).astype(np.float32)
    numbers = (np.zeros((n_events, 0), np.float32), ages, np.zeros((n_events, 0), np.float32))
    return Piece(integers, hashes, numbers, np.full((n_events, 2), 0.5, np.float32) if told else None)


def test_a_batch_closes_when_it_is_full() -> None:
    assert not _due(_filled(5), 100, NO_REQUEST, 0)
    assert _due(_filled(6), 100, NO_REQUEST, 0)


def test_a_batch_closes_after_its_span_if_it_is_worth_a_step() -> None:
    assert not _due(_filled(3), 109, NO_REQUEST, 0)
    assert _due(_filled(3), 110, NO_REQUEST, 0)
    assert not _due(_filled(2), 10_000, NO_REQUEST, 0)


def test_matured_labels_close_a_batch_only_when_they_are_very_many() -> None:
    assert not _due(_filled(2), 100, NO_REQUEST, 6 * MOST_BATCHES - 1)
    assert _due(_filled(2), 100, NO_REQUEST, 6 * MOST_BATCHES)


def test_matured_labels_make_a_batch_worth_a_step() -> None:
    assert not _due(_filled(1), 110, NO_REQUEST, 1)
    assert _due(_filled(1), 110, NO_REQUEST, 2)


def test_sampled_items_fill_a_batch_too() -> None:
    buffer = _buffer()
    count(buffer.counts, 0, NO_REQUEST, USER, ITEM, 1 + 5)
    assert _due(buffer, 0, NO_REQUEST, 0)


def test_events_without_a_row_do_not_fill_a_batch() -> None:
    buffer = _buffer()
    for _ in range(20):
        count(buffer.counts, 0, NO_REQUEST, USER, ITEM, 0)
    assert buffer.n_events == 20
    assert not _due(buffer, 10_000, NO_REQUEST, 0)


def test_a_request_is_not_split_unless_it_is_absurdly_long() -> None:
    assert not _due(_filled(8, request=11), 10_000, 11, 0)
    assert _due(_filled(8, request=11), 100, 12, 0)
    assert _due(_filled(6 * MOST_BATCHES, request=11), 100, 11, 0)


def test_events_of_no_request_are_not_one_request() -> None:
    assert _due(_filled(6), 100, NO_REQUEST, 0)


def test_what_a_user_did_with_an_item_in_one_millisecond_is_not_split() -> None:
    buffer = _filled(8, ts_ms=100)
    assert not due(buffer.counts, buffer.limits, 100, NO_REQUEST, USER, ITEM, 0)
    for time_ms, user, item in ((101, USER, ITEM), (100, USER + 1, ITEM), (100, USER, ITEM + 1)):
        assert due(buffer.counts, buffer.limits, time_ms, NO_REQUEST, user, item, 0)


def test_an_empty_buffer_is_never_due_for_time() -> None:
    assert not _due(_buffer(), 1 << 50, NO_REQUEST, 0)
    assert _due(_buffer(), 0, NO_REQUEST, 6)


@pytest.mark.parametrize("saved_between", [False, True])
def test_pieces_come_out_as_columns_in_order_and_the_buffer_is_empty_again(saved_between: bool) -> None:
    buffer = _buffer()
    count(buffer.counts, 7, NO_REQUEST, USER, ITEM, 1)
    buffer.add(_piece(0, 3))
    if saved_between:
        arrays, state = buffer.save()
        buffer = _buffer()
        buffer.restore(arrays, state)
    buffer.add(_piece(3, 2, told=True))
    assert (buffer.first_event_ms, buffer.n_events) == (7, 1)
    columns, slot, task, truth = buffer.take()
    kinds = np.arange(5)
    for place, column in enumerate((*columns[:9], slot, task)):
        np.testing.assert_array_equal(column, kinds + 100 * place)
    np.testing.assert_array_equal(columns.item_attributes, kinds[:, None] * 7)
    np.testing.assert_array_equal(columns.user_numbers, kinds[:, None] / 2)
    assert columns.context_attributes.shape == columns.item_numbers.shape == (5, 0)
    assert truth is not None
    np.testing.assert_array_equal(truth[:, 0], [np.nan] * 3 + [0.5] * 2)
    assert (buffer.n_events, buffer.first_event_ms) == (0, -1)
    assert len(buffer.take()[0].kind) == 0


def test_a_stream_without_truth_has_none() -> None:
    buffer = _buffer()
    buffer.add(_piece(0, 2))
    buffer.add(_piece(2, 1))
    assert buffer.take()[3] is None
