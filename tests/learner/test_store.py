"""Examples that wait: what is put is what is got, whatever happens in between."""

import copy

import numpy as np
import pytest

from learner.store import ExampleStore


@pytest.fixture
def layout(make_settings, layout_of):
    return layout_of(make_settings())


def put(store, batch, value):
    """The batch's rows, all scored alike."""
    store.put(batch)
    store.put_logits(batch.slot, np.full(batch.labels.shape, value, np.float32))


def test_rows_come_back_as_they_were_by_their_slots(layout, make_batch) -> None:
    store, rng = ExampleStore(layout, 10_000), np.random.default_rng(0)
    slot = np.array([3, -1, 0, 7], np.int64)
    truth = np.full((4, 3), 0.25, np.float32)
    batch = make_batch(layout, 4, rng, slot=slot, list_id=np.arange(4), time_ms=np.arange(4) + 50, truth=truth)
    store.put(batch)
    store.put_logits(slot, np.arange(12, dtype=np.float32).reshape(4, 3))
    wanted = np.array([7, 0, 7])
    rows = store.rows(wanted)
    for name in ("ids", "history", "dense", "log_q"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(batch.rows, name)[[3, 2, 3]], strict=True)
    assert store.column("logits", wanted)[:, 0].tolist() == [9, 6, 9]
    assert store.column("time_ms", wanted).tolist() == [53, 52, 53]
    assert store.column("list_id", wanted).tolist() == [3, 2, 3]
    assert store.column("truth", wanted).tolist() == [[0.25] * 3] * 3


def test_a_row_without_a_slot_is_not_kept(layout, make_batch) -> None:
    store, rng = ExampleStore(layout, 10_000), np.random.default_rng(0)
    before = copy.deepcopy(store.save())
    put(store, make_batch(layout, 4, rng), 1.0)
    for name, column in store.save().items():
        np.testing.assert_array_equal(column, before[name], err_msg=name)


def test_a_freed_slot_holds_its_new_row_wholly(layout, make_batch) -> None:
    store, rng = ExampleStore(layout, 10_000), np.random.default_rng(0)
    slot = np.array([0], np.int64)
    put(store, make_batch(layout, 1, rng, slot=slot, truth=np.full((1, 3), 0.5, np.float32)), 1.0)
    second = make_batch(layout, 1, rng, slot=slot, list_id=np.array([4]))
    put(store, second, 2.0)
    np.testing.assert_array_equal(store.rows(slot).dense, second.rows.dense)
    assert np.isnan(store.column("truth", slot)).all(), "a truth of the row before"
    assert (store.column("logits", slot)[0, 0], store.column("list_id", slot)[0]) == (2.0, 4)


def test_it_grows_with_the_slots_and_keeps_what_it_has(layout, make_batch) -> None:
    store, rng = ExampleStore(layout, 10_000), np.random.default_rng(0)
    first = make_batch(layout, 2, rng, slot=np.array([0, 1], np.int64))
    put(store, first, 1.0)
    for slot in (1024, 5000, 5001, 100_000):
        put(store, make_batch(layout, 1, rng, slot=np.array([slot], np.int64)), float(slot))
    np.testing.assert_array_equal(store.rows(np.array([0, 1])).ids, first.rows.ids)
    assert store.column("logits", np.array([1, 5001, 100_000]))[:, 0].tolist() == [1.0, 5001.0, 100_000.0]


def test_what_is_loaded_is_independent_of_what_was_saved(layout, make_batch) -> None:
    store, rng = ExampleStore(layout, 10_000), np.random.default_rng(0)
    slot = np.array([0, 2000], np.int64)
    batch = make_batch(layout, 2, rng, slot=slot)
    put(store, batch, 1.0)
    other = ExampleStore(layout, 10_000)
    other.load(store.save())
    put(store, make_batch(layout, 2, rng, slot=slot), 3.0)
    np.testing.assert_array_equal(other.rows(slot).ids, batch.rows.ids)
    assert other.column("logits", slot)[:, 0].tolist() == [1.0, 1.0]


def test_what_was_captured_is_the_cut_and_the_next_capture_holds_what_changed_since(layout, make_batch) -> None:
    store, rng = ExampleStore(layout, 10_000), np.random.default_rng(0)
    slots = np.arange(1000, dtype=np.int64)
    put(store, make_batch(layout, 1000, rng, slot=slots), 1.0)
    first, n_tasks = store.capture(), len(layout.tasks)
    store.put_logits(slots[:5], np.full((5, n_tasks), 2.0, np.float32))
    put(store, make_batch(layout, 1, rng, slot=slots[7:8]), 3.0)
    assert first()["logits"][:10, 0].tolist() == [1.0] * 10
    second = copy.deepcopy(store.capture()())
    assert second["logits"][:10, 0].tolist() == [2.0] * 5 + [1.0] * 2 + [3.0] + [1.0] * 2
    np.testing.assert_array_equal(second["dense"][7], store.rows(slots[7:8]).dense[0])
