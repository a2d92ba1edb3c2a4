"""The embedding table: the step, admission, the cap, and that looking changes nothing."""

import copy

import numpy as np
import pytest
import torch

from contracts.batch import Rows
from contracts.memory import embedding_row_bytes
from contracts.settings import EmbeddingSettings
from features.hashing import EMPTY
from learner.embedding import NO_ROW, EmbeddingTable, capacity_for

N_FIELDS, N_TYPES, WIDTH = 3, 2, 5
LEARNING_RATE, INITIAL = 0.07, 0.2


def table(admit_after=1, max_mib=1.0, seed=0):
    settings = EmbeddingSettings(
        max_mib=max_mib, admit_after=admit_after, learning_rate=LEARNING_RATE, initial_accumulator=INITIAL
    )
    return EmbeddingTable(settings, WIDTH, (1,) * N_FIELDS, N_TYPES, seed)


def rows_of(ids, history=None):
    ids = np.asarray(ids, np.int64)
    n = len(ids)
    if history is None:
        history = np.zeros((n, N_TYPES, 4), np.int64)
    return Rows(ids, np.asarray(history, np.int64), np.zeros((n, 1), np.float32), np.zeros(n, np.float32))


def see(made, ids, history=None):
    rows = rows_of(ids, history)
    made.see(rows.ids, np.ones(len(ids), np.bool_))
    return made.rows(rows)


def by_row(made):
    """Weights and accumulators indexed by table row."""
    saved = made.save()
    row = np.concatenate([np.arange(N_FIELDS), saved["directory.row"] + N_FIELDS])
    weights, accumulators = np.zeros((made.capacity, WIDTH), np.float32), np.zeros(made.capacity, np.float32)
    weights[row], accumulators[row] = saved["weights"], saved["accumulators"]
    return weights, accumulators


def test_accumulators_halve_with_event_time_down_to_their_initial_value() -> None:
    settings = EmbeddingSettings.model_validate({"max_mib": 1.0, "admit_after": 1, "accumulator_half_life": "16s"})
    made, rng = EmbeddingTable(settings, WIDTH, (1,) * N_FIELDS, N_TYPES, 0), np.random.default_rng(0)
    ids, history = see(made, *random_examples(rng, 30))
    made.update(ids, history, torch.ones(30, N_FIELDS + N_TYPES, WIDTH), 1.0)
    initial = settings.initial_accumulator
    made.decay(100_000)
    _, before = by_row(made)
    assert before.max() > 10 * initial
    made.decay(100_999)  # less than a sixteenth: not yet
    np.testing.assert_array_equal(by_row(made)[1], before)
    for now_ms in (103_000, 110_500, 116_000):
        made.decay(now_ms)
    _, after = by_row(made)
    used = after > 0
    np.testing.assert_allclose(after[used] - initial, (before[used] - initial) / 2, rtol=1e-4, atol=1e-6)


def test_a_pull_moves_the_touched_rows_and_no_others() -> None:
    made, rng = table(), np.random.default_rng(0)
    ids, history = see(made, *random_examples(rng, 30))
    made.update(
        ids, history, torch.from_numpy(rng.normal(size=(30, N_FIELDS + N_TYPES, WIDTH)).astype(np.float32)), 1.0
    )
    before, accumulators = by_row(made)
    nothing = np.full((3, N_TYPES, 1), NO_ROW)
    made.update(ids[:3], nothing, torch.zeros(3, N_FIELDS + N_TYPES, WIDTH), 1.0, 0.02, 0.3)
    after, after_accumulators = by_row(made)
    touched = np.unique(ids[:3])
    gradient = 0.02 * np.sign(before[touched]) + 0.3 * before[touched]
    expected = accumulators[touched] + (gradient**2).mean(1)
    np.testing.assert_allclose(after_accumulators[touched], expected, rtol=1e-5)
    step = LEARNING_RATE * gradient / (np.sqrt(expected) + 1e-8)[:, None]
    np.testing.assert_allclose(after[touched], before[touched] - step, rtol=1e-4, atol=1e-6)
    others = np.setdiff1d(np.arange(made.capacity), touched)
    np.testing.assert_array_equal(after[others], before[others])


def random_examples(rng, n, n_ids=12):
    ids = rng.integers(1, n_ids, (n, N_FIELDS)) + 100 * np.arange(1, N_FIELDS + 1)
    history = rng.integers(1, n_ids, (n, N_TYPES, 4)) + 200
    history[rng.random(history.shape) < 0.5] = 0
    return ids, history


def reference(weights, ids, history):
    """What `embed` promises, in torch, differentiable."""
    fields = weights[torch.from_numpy(ids)]
    present = torch.from_numpy(history >= 0).float()
    past = weights[torch.from_numpy(np.maximum(history, 0))] * present[..., None]
    return torch.cat([fields, past.sum(2) / present.sum(2).clamp(min=1)[..., None]], 1)


def test_a_step_is_that_of_row_wise_adagrad_with_duplicates_and_history_means() -> None:
    made, rng = table(), np.random.default_rng(1)
    for _ in range(4):
        keys, past = random_examples(rng, 30)
        past[1::3] = past[::3]  # rows of one viewer, and rows that look like it
        past[2::3, :, 0] = past[1::3, :, 0]
        ids, history = see(made, keys, past)
        before, accumulators = by_row(made)
        weights = torch.from_numpy(before.copy()).requires_grad_()
        expected = reference(weights, ids, history)
        embedded = made.embed(ids, history)
        torch.testing.assert_close(embedded, expected.detach())

        gradient = torch.from_numpy(rng.normal(size=embedded.shape).astype(np.float32))
        (expected * gradient * 3.0).sum().backward()
        summed = weights.grad.numpy()
        accumulators = accumulators + (summed**2).mean(1)
        moved = before - LEARNING_RATE * summed / (np.sqrt(accumulators) + 1e-8)[:, None]
        untouched = ~summed.any(1)
        made.update(ids, history, gradient, 3.0)
        after, after_accumulators = by_row(made)
        np.testing.assert_allclose(after[~untouched], moved[~untouched], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(after_accumulators[~untouched], accumulators[~untouched], rtol=1e-4)
        np.testing.assert_array_equal(after[untouched], before[untouched])
        assert len(np.unique(ids[:, 1])) < len(ids), "no duplicate in the batch"


def test_an_id_gets_a_row_at_its_kth_sighting_and_starts_as_the_cold_row() -> None:
    made = table(admit_after=3)
    ids, history = see(made, [[101, 201, 301]])
    assert ids.tolist() == [[0, 1, 2]]
    made.update(ids, history, torch.ones(1, N_FIELDS + N_TYPES, WIDTH), 1.0)  # the cold rows are trained
    ids, history = see(made, [[101, 201, 301]])
    assert ids.tolist() == [[0, 1, 2]]
    assert (made.n_rows, made.n_rejected) == (N_FIELDS, 6)
    cold = made.embed(ids, history)
    ids, history = see(made, [[101, 201, 301]])
    assert (ids >= N_FIELDS).all()
    assert len(set(ids[0].tolist())) == N_FIELDS
    assert made.n_rows == 2 * N_FIELDS
    torch.testing.assert_close(made.embed(ids, history), cold, rtol=0, atol=0)
    made.update(ids, history, torch.ones(1, N_FIELDS + N_TYPES, WIDTH), 1.0)
    unknown, _ = made.rows(rows_of([[109, 209, 309]]))
    torch.testing.assert_close(made.embed(unknown, history), cold, rtol=0, atol=0)


def test_sightings_within_one_batch_count() -> None:
    made = table(admit_after=2)
    ids, _ = see(made, [[101, 201, 301], [101, 202, 302]])
    assert ids[0, 0] == ids[1, 0] >= N_FIELDS
    assert ids[:, 1:].tolist() == [[1, 2], [1, 2]]


@pytest.mark.parametrize("n_ids", [40, 4000], ids=["with room", "full"])
def test_rows_that_are_known_save_looking_and_change_nothing(n_ids: int) -> None:
    rng = np.random.default_rng(1)
    told, looking = table(admit_after=2, max_mib=0.1), table(admit_after=2, max_mib=0.1)
    for _ in range(60):
        examples = rows_of(*random_examples(rng, 50, n_ids=n_ids))
        sightings = rng.random(50) < 0.8
        ids, history = told.rows(examples)
        before = told.n_evicted
        told.see(examples.ids, sightings, ids)
        looking.see(examples.ids, sightings)
        if told.n_evicted == before:
            told.look_again(examples, ids, history)
            for found, wanted in zip((ids, history), looking.rows(examples), strict=True):
                np.testing.assert_array_equal(found, wanted)
    assert (told.n_evicted > 0) == (n_ids > 1000)
    for name, wanted in looking.save().items():
        np.testing.assert_array_equal(told.save()[name], wanted, err_msg=name)


def test_a_sampled_item_is_no_sighting() -> None:
    made = table(admit_after=1)
    made.see(np.array([[101, 201, 301]]), np.zeros(1, np.bool_))
    ids, _ = made.rows(rows_of([[101, 201, 301]]))
    assert ids.tolist() == [[0, 1, 2]]
    assert made.n_rows == N_FIELDS


def test_history_of_an_unknown_item_is_its_cold_row_and_no_history_is_zeros() -> None:
    made = table()
    history = np.zeros((1, N_TYPES, 4), np.int64)
    history[0, 0, 0] = 299
    ids, places = see(made, [[101, 201, 301]], history)
    assert places[0].tolist() == [[1] + [NO_ROW] * 3, [NO_ROW] * 4]
    embedded = made.embed(ids, places)
    weights, _ = by_row(made)
    np.testing.assert_array_equal(embedded[0, N_FIELDS].numpy(), weights[1])
    assert not embedded[0, N_FIELDS + 1].any()


def test_looking_changes_nothing(assert_same) -> None:
    made, rng = table(admit_after=2), np.random.default_rng(2)
    for _ in range(3):
        see(made, *random_examples(rng, 20))
    before = copy.deepcopy(made.save())
    made.embed(*made.rows(rows_of(*random_examples(rng, 50, n_ids=500))))
    assert_same(before, made.save())


def test_the_cap_in_bytes_holds_and_what_is_recent_or_frequent_stays() -> None:
    max_mib = 0.1
    made, n = table(max_mib=max_mib), 100
    frequent = [101, 201, 301]
    ids, history = see(made, [frequent])
    made.update(ids, history, torch.ones(1, N_FIELDS + N_TYPES, WIDTH), 1.0)
    learned = made.embed(ids, history)
    for index in range(60):
        fresh = 1000 * (index + 1) + np.arange(n)[:, None] + 1_000_000 * np.arange(N_FIELDS)
        see(made, np.concatenate([[frequent], fresh]))
        assert made.n_bytes <= max_mib * (1 << 20)
        now, _ = made.rows(rows_of(fresh))
        assert (now >= N_FIELDS).all(), "what was just seen is gone"
    assert made.n_evicted > 0
    assert made.n_rows <= made.capacity
    torch.testing.assert_close(made.embed(*made.rows(rows_of([frequent]))), learned, rtol=0, atol=0)
    oldest, _ = made.rows(rows_of([[1000, 1_001_000, 2_001_000]]))
    assert oldest.tolist() == [[0, 1, 2]], "the oldest rows are the ones that go"


@pytest.mark.parametrize("max_mib", [0.1, 1.0, 7.3])
@pytest.mark.parametrize("width", [1, 16, 48])
def test_the_capacity_is_the_most_that_fits(max_mib: float, width: int) -> None:
    try:
        rows = capacity_for(max_mib, width)
    except ValueError as error:
        assert f"found {max_mib}" in str(error)  # noqa: PT017 - which of the two it is depends on the size
        return
    assert rows >= 1000
    assert rows * embedding_row_bytes(width) < max_mib * (1 << 20)


def test_a_cap_too_small_to_be_useful_is_refused() -> None:
    with pytest.raises(ValueError, match=r"embedding.max_mib must hold at least 1000 rows of width 16; found 0\.01"):
        capacity_for(0.01, 16)


def test_ids_seen_once_are_kept_out_however_long_the_stream() -> None:
    made, rng = table(admit_after=2, max_mib=8.0), np.random.default_rng(3)
    n_ids = 0
    for _ in range(150):
        ids = rng.integers(1, 1 << 62, (1000, N_FIELDS))
        see(made, ids)
        n_ids += ids.size
    assert made.n_rejected > 0.85 * n_ids


def test_a_saved_and_loaded_table_goes_on_identically_through_evictions(assert_same) -> None:
    straight, rng = table(admit_after=2, max_mib=0.1), np.random.default_rng(4)
    resumed = table(admit_after=2, max_mib=0.1, seed=9)

    def learn(made, generator):
        ids, history = see(made, *random_examples(generator, 200, n_ids=2000))
        gradient = torch.from_numpy(generator.normal(size=(200, N_FIELDS + N_TYPES, WIDTH)).astype(np.float32))
        made.update(ids, history, gradient, 1.0)
        return made.embed(ids, history)

    for _ in range(20):
        learn(straight, rng)
    resumed.load(copy.deepcopy(straight.save()))
    other = copy.deepcopy(rng)
    for _ in range(20):
        torch.testing.assert_close(learn(straight, rng), learn(resumed, other), rtol=0, atol=0)
    assert straight.n_evicted > 0
    assert_same(straight.save(), resumed.save())


def test_a_field_of_several_values_is_their_mean_and_each_learns_its_share() -> None:
    """Beside fields of one value; what an empty slot holds is nobody's row and is never admitted."""
    settings = EmbeddingSettings(max_mib=1.0, admit_after=2, learning_rate=LEARNING_RATE, initial_accumulator=INITIAL)
    made = EmbeddingTable(settings, WIDTH, (1, 1, 3), N_TYPES, 0)
    ids = [[1, 2, 11, 12, EMPTY], [1, 2, 11, EMPTY, EMPTY], [1, 2, EMPTY, EMPTY, EMPTY]]
    for _ in range(2):
        rows, history = see(made, ids)
    assert (rows[:, 2:] == NO_ROW).tolist() == [[False, False, True], [False, True, True], [True] * 3]
    assert made.n_rows == 3 + 4
    gradient = torch.randn(3, 3 + N_TYPES, WIDTH, generator=torch.Generator().manual_seed(1))
    before, _ = by_row(made)
    embedded = made.embed(rows, history).numpy()
    np.testing.assert_allclose(embedded[0, 2], before[rows[0, 2:4]].mean(0), rtol=1e-6)
    np.testing.assert_allclose(embedded[1, 2], before[rows[1, 2]], rtol=1e-6)
    assert not embedded[2, 2].any()
    made.update(rows, history, gradient, 1.0)
    after, _ = by_row(made)
    of_field = gradient[:, 2].numpy()
    for row, summed in ((rows[0, 2], of_field[0] / 2 + of_field[1]), (rows[0, 3], of_field[0] / 2)):
        step = LEARNING_RATE * summed / np.sqrt(INITIAL + (summed**2).mean())
        np.testing.assert_allclose(before[row] - after[row], step, rtol=1e-4)


def test_unadmitted_labels_of_a_field_train_its_one_cold_row() -> None:
    settings = EmbeddingSettings(max_mib=1.0, admit_after=9)
    made = EmbeddingTable(settings, WIDTH, (1, 1, 3), N_TYPES, 0)
    rows, _ = see(made, [[1, 2, 11, 12, 13]])
    assert rows.tolist() == [[0, 1, 2, 2, 2]]


def test_what_was_captured_is_the_cut_whatever_is_learned_before_it_is_put_together(assert_same) -> None:
    """Evictions and the accumulators' decay change rows that no step touches."""
    settings = {"max_mib": 0.1, "admit_after": 1, "accumulator_half_life": "16s"}
    made = EmbeddingTable(EmbeddingSettings.model_validate(settings), WIDTH, (1,) * N_FIELDS, N_TYPES, 0)
    rng = np.random.default_rng(4)

    def learn(n_ids, now_ms):
        ids, history = see(made, *random_examples(rng, 100, n_ids=n_ids))
        gradient = torch.from_numpy(rng.normal(size=(100, N_FIELDS + N_TYPES, WIDTH)).astype(np.float32))
        made.update(ids, history, gradient, 1.0)
        made.decay(now_ms)

    for step in range(40):
        learn(10 if step % 3 else 3000, 300 * step)  # few rows change, then many
        twin = copy.deepcopy(made)
        twin._changed[...] = True
        wanted, finish = twin.save(), made.capture()
        if step % 4 == 1:
            learn(3000, 300 * step)
        assert_same(wanted, finish())
    assert made.n_evicted > 0


def test_a_table_and_its_deltas_look_up_what_a_table_loaded_whole_does() -> None:
    made, rng = table(max_mib=0.1), np.random.default_rng(4)
    follower = None
    for step in range(60):
        n_ids = 10 if step % 3 else 3000
        ids, history = see(made, *random_examples(rng, 100, n_ids=n_ids))
        gradient = torch.from_numpy(rng.normal(size=(100, N_FIELDS + N_TYPES, WIDTH)).astype(np.float32))
        made.update(ids, history, gradient, 1.0)
        if step == 20:
            follower = table(max_mib=0.1)
            follower.load(copy.deepcopy(made.save()))
        if step <= 20:
            continue
        whole = table(max_mib=0.1)
        before, looked = follower, rows_of(*random_examples(rng, 200, n_ids=3000))
        seen_before = before.embed(*before.rows(looked))
        follower = follower.moved_on(made.capture_delta()())
        whole.load(copy.deepcopy(made.save()))
        for rows in (looked, rows_of(*random_examples(rng, 200, n_ids=10))):
            assert torch.equal(follower.embed(*follower.rows(rows)), whole.embed(*whole.rows(rows)))
        assert torch.equal(before.embed(*before.rows(looked)), seen_before)
    assert made.n_evicted > 0
