"""The step: what is learned, in which order, from which features, and that a restored trainer goes on bit by bit."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import learner.trainer
from contracts.batch import Rows
from contracts.components import names
from learner.models._frozen import FrozenModel
from learner.snapshot import SnapshotStore
from learner.trainer import Trainer, use_threads
from learner.wide import WideWeights

NO_SLOT = np.zeros(0, np.int64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture
def settings(make_settings):
    return make_settings()


@pytest.fixture
def layout(settings, layout_of):
    return layout_of(settings)


def everything(trainer):
    return copy.deepcopy(trainer.save())


def weights(trainer):
    """What scoring depends on."""
    groups, _ = everything(trainer)
    return {name: groups[name] for name in ("dense", "optimizer", "table")}


def stored_logits(trainer, slot):
    return trainer.save()[0]["examples"]["logits"][slot]


def waiting(batch, slot):
    """The same rows, nothing known of them yet."""
    return replace(
        batch, slot=np.asarray(slot, np.int64), known=np.zeros_like(batch.known), learn=np.zeros_like(batch.learn)
    )


def only_matured(batch, slot, labels, known):
    """A batch without rows that brings labels."""
    rows = batch.rows
    return replace(
        batch,
        rows=Rows(rows.ids[:0], rows.history[:0], rows.dense[:0], rows.log_q[:0]),
        **{
            name: getattr(batch, name)[:0]
            for name in ("slot", "sampled", "time_ms", "list_id", "labels", "known", "learn")
        },
        matured_slot=np.asarray(slot, np.int64),
        matured_labels=labels,
        matured_known=known,
        matured_learn=known,
        matured_late=np.zeros_like(known),
    )


def last_half_ne(trainer, task="click"):
    return trainer.quality.report()[task]["last_half"]["ne"]


def test_it_learns_a_linear_signal_of_the_dense_features(settings, layout, make_batch) -> None:
    # A short stream: twice the default rate.
    quick = settings.model_copy(update={"train": settings.train.model_copy(update={"learning_rate": 2e-3})})
    trainer, rng = Trainer(quick, layout), np.random.default_rng(0)
    direction = rng.normal(size=len(layout.dense)) * 0.4
    noise = 0.0
    for index in range(150):
        batch = make_batch(layout, 128, rng, index)
        p = sigmoid(batch.rows.dense @ direction - 1)[:, None]
        labels = (rng.random(batch.labels.shape) < p).astype(np.float32)
        if index >= 75:
            noise += float(-(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()) / 75
        trainer.step(replace(batch, labels=labels))
    report = trainer.quality.report()["click"]["last_half"]
    assert report["ne"] < 0.75
    assert report["log_loss"] < 1.25 * noise, "far from what the true probabilities would cost"
    assert report["calibration"] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("model", ["mmoe", "shared_bottom", "single_task"])
def test_it_learns_a_signal_that_only_the_ids_carry(make_settings, layout_of, make_batch, model) -> None:
    # Wide enough that no network starts with all its units at rest.
    settings = make_settings(model={"name": model, "expert_layers": (32, 16), "tower": 16})
    layout = layout_of(settings)
    trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
    for index in range(200):
        batch = make_batch(layout, 128, rng, index)
        batch.rows.dense[:] = 0
        p = np.where(batch.rows.ids[:, 1] % 2 == 0, 0.8, 0.1)[:, None]
        trainer.step(replace(batch, labels=(rng.random(batch.labels.shape) < p).astype(np.float32)))
    assert last_half_ne(trainer) < 0.82
    assert trainer.quality.report()["click"]["last_half"]["auc"] > 0.8


def test_learned_at_once_as_negatives_the_probabilities_are_those_of_the_final_labels(
    make_settings, layout_of, make_batch
) -> None:
    """Every exposure is a negative at first, its outcome a positive more two batches later: yet what is served is p."""
    settings = make_settings(tasks=[{"name": "click"}], model={"expert_layers": (32, 16), "tower": 16})
    layout = layout_of(settings)
    trainer, rng, n = Trainer(settings, layout), np.random.default_rng(0), 128
    none = np.zeros((n, 1), np.bool_)
    waiting_labels = []
    for index in range(300):
        batch = make_batch(layout, n, rng, index)
        batch.rows.dense[:] = 0
        p = np.where(batch.rows.ids[:, 1] % 2 == 0, 0.7, 0.1)[:, None]
        waiting_labels.append((rng.random((n, 1)) < p).astype(np.float32))
        ripe = waiting_labels[index - 2] if index >= 2 else None
        trainer.step(
            replace(
                batch,
                slot=index % 3 * n + np.arange(n),
                labels=np.zeros((n, 1), np.float32),
                known=none,
                learn=~none,
                matured_slot=NO_SLOT if ripe is None else (index - 2) % 3 * n + np.arange(n),
                matured_labels=np.zeros((0, 1), np.float32) if ripe is None else ripe,
                matured_known=none[:0] if ripe is None else ~none,
                matured_learn=none[:0] if ripe is None else ripe > 0,
                matured_late=none[:0] if ripe is None else ripe > 0,
            )
        )
    report = trainer.quality.report()["click"]["last_half"]
    assert report["ne"] < 0.85
    assert report["calibration"] == pytest.approx(1.0, abs=0.15)
    assert trainer.base_rates.rates[0] == pytest.approx(0.4, abs=0.03)


def test_without_a_signal_ne_is_about_one_from_the_first_day(settings, layout, make_batch) -> None:
    trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
    for index in range(40):
        trainer.step(make_batch(layout, 64, rng, index))
    assert trainer.quality.report()["click"]["all"]["ne"] == pytest.approx(1.0, abs=0.06)


def test_a_batch_is_scored_before_its_labels_are_learned(settings, layout, make_batch) -> None:
    rng = np.random.default_rng(0)
    straight, flipped = Trainer(settings, layout), Trainer(settings, layout)
    for index in range(12):
        batch = make_batch(layout, 64, rng, index)
        straight.step(batch)
        flipped.step(batch)
    slot = np.arange(64)
    known = np.ones((64, 3), np.bool_)
    known[:, 2] = False
    last = replace(make_batch(layout, 64, rng, 12), slot=slot, known=known, learn=known)
    before = straight.quality.report()["click"]["all"]
    straight.step(last)
    flipped.step(replace(last, labels=1 - last.labels))
    np.testing.assert_array_equal(stored_logits(straight, slot), stored_logits(flipped, slot))
    one, other = straight.quality.report()["click"]["all"], flipped.quality.report()["click"]["all"]
    assert one["log_loss"] != other["log_loss"] != before["log_loss"]


def test_labels_that_mature_in_their_own_batch_are_counted_at_the_score_before_learning(
    settings, layout, make_batch
) -> None:
    rng = np.random.default_rng(0)
    straight, flipped = Trainer(settings, layout), Trainer(settings, layout)
    for index in range(12):
        batch = make_batch(layout, 64, rng, index)
        straight.step(batch)
        flipped.step(batch)
    slot = np.arange(64)
    last = make_batch(layout, 64, rng, 12)
    known = np.ones((64, 3), np.bool_)
    last = replace(
        waiting(last, slot),
        matured_slot=slot,
        matured_labels=last.labels,
        matured_known=known,
        matured_learn=known,
        matured_late=np.zeros_like(known),
    )
    straight.step(last)
    flipped.step(replace(last, matured_labels=1 - last.matured_labels))
    np.testing.assert_array_equal(stored_logits(straight, slot), stored_logits(flipped, slot))
    assert stored_logits(straight, slot).any()
    assert straight.quality.report()["click"]["all"]["log_loss"] != flipped.quality.report()["click"]["all"]["log_loss"]


def test_a_late_label_is_measured_by_the_score_of_its_exposure(settings, layout, make_batch) -> None:
    trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
    slot = np.arange(32)
    first = make_batch(layout, 32, rng)
    trainer.step(waiting(first, slot))
    scored = stored_logits(trainer, slot)
    for index in range(30):  # meanwhile the model changes a lot
        trainer.step(make_batch(layout, 64, rng, index))
    before = trainer.quality.block(1).counts.copy()
    known = np.zeros((32, 3), np.bool_)
    known[:, 1] = True
    trainer.step(only_matured(first, slot, first.labels, known))
    labels = first.labels[:, 1]
    expected = float(np.logaddexp(0, np.where(labels > 0, -scored[:, 1], scored[:, 1])).mean())
    assert trainer.losses["click"] == pytest.approx(expected, rel=1e-5)
    assert trainer.quality.block(1).counts[0] - before[0] == 32


def test_a_late_positive_trains_on_the_features_of_its_exposure(settings, layout, make_batch) -> None:
    late, at_once, rng = Trainer(settings, layout), Trainer(settings, layout), np.random.default_rng(0)
    for index in range(8):
        batch = make_batch(layout, 64, rng, index)
        late.step(batch)
        at_once.step(batch)
    exposure, other = make_batch(layout, 1, rng, 8), make_batch(layout, 1, rng, 9)
    labels = np.array([[0, 1, 0]], np.float32)
    known = np.array([[False, True, False]])
    late.step(waiting(exposure, [0]))
    at_once.step(waiting(exposure, [0]))
    # The same user and item look different by now: slot 1 holds that.
    now = replace(other, rows=replace(other.rows, ids=exposure.rows.ids))
    late.step(waiting(now, [1]))
    at_once.step(waiting(now, [1]))
    before = weights(late)
    late.step(only_matured(exposure, [0], labels, known))
    again = replace(exposure, labels=labels, known=known, learn=known, sampled=np.ones(1, np.bool_))
    at_once.step(again)
    after, expected = weights(late), weights(at_once)
    assert any((after["dense"][name] != before["dense"][name]).any() for name in after["dense"])
    for name, value in after["dense"].items():
        np.testing.assert_array_equal(value, expected["dense"][name], err_msg=name)
    np.testing.assert_array_equal(after["table"]["weights"], expected["table"]["weights"])


def test_a_batch_of_waiting_rows_teaches_nothing(settings, layout, make_batch) -> None:
    trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
    for index in range(4):
        trainer.step(make_batch(layout, 64, rng, index))
    before = everything(trainer)[0]
    trainer.step(waiting(make_batch(layout, 64, rng, 4), np.arange(64)))
    after = everything(trainer)[0]
    for group in ("dense", "optimizer", "base_rates"):
        for name, value in before[group].items():
            np.testing.assert_array_equal(value, after[group][name], err_msg=name)


def test_labels_and_positives_are_counted_as_learned(settings, layout, make_batch) -> None:
    trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
    known = rng.random((64, 3)) < 0.5
    batch = replace(make_batch(layout, 64, rng), known=known, learn=known)
    batch = replace(batch, labels=np.where(known, batch.labels, np.nan).astype(np.float32))
    trainer.step(batch)
    assert trainer.n_learned.tolist() == known.sum(0).tolist()
    assert trainer.n_positives.tolist() == np.nansum(batch.labels, 0).astype(int).tolist()
    assert trainer.skipped is None


def test_the_gradient_of_the_dense_part_is_clipped(make_settings, layout_of, make_batch) -> None:
    norms = []
    for clip_norm in (1e-12, 10.0):
        settings = make_settings(train={"clip_norm": clip_norm})
        layout = layout_of(settings)
        trainer = Trainer(settings, layout)
        trainer.step(make_batch(layout, 64, np.random.default_rng(0)))
        moments = everything(trainer)[0]["optimizer"]
        norms.append(np.linalg.norm(moments["exp_avg"]) / 0.1)  # Adam's first moment: (1 − β₁)·g
    assert norms[0] == pytest.approx(1e-12, rel=1e-3)
    assert 1e-3 < norms[1] <= 10.0


@pytest.mark.parametrize(("n_rows", "scale"), [(16, 1.0), (64, 1.0), (256, 2.0), (1024, 4.0)])
def test_the_dense_part_steps_by_the_root_of_the_rows(make_settings, layout_of, make_batch, n_rows, scale) -> None:
    """Adam's first step is the learning rate, whatever the gradient."""
    settings = make_settings()
    trainer = Trainer(settings, layout_of(settings))
    before = weights(trainer)["dense"]
    trainer.step(make_batch(trainer.layout, n_rows, np.random.default_rng(0)))
    dense = weights(trainer)["dense"]
    moved = max(np.abs(after - before[name]).max() for name, after in dense.items() if "spread" not in name)
    assert moved == pytest.approx(scale * settings.train.learning_rate, rel=1e-2)


@pytest.mark.parametrize("detector", ["adwin", "page_hinkley"])
def test_a_change_of_the_label_rate_is_told_as_drift(make_settings, layout_of, make_batch, detector) -> None:
    settings = make_settings(evaluation={"detector": detector})
    layout = layout_of(settings)
    trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
    drifted = []
    for index in range(600):
        batch = make_batch(layout, 32, rng, index)
        labels = (rng.random((32, 3)) < [0.3, 0.05 if index < 300 else 0.6, 0.3]).astype(np.float32)
        if index < 300:
            labels[0, 1] = 1.0
        trainer.step(replace(batch, labels=labels))
        drifted += [(index, task) for task in trainer.drifted]
    assert any(task == "click" and index >= 300 for index, task in drifted)
    assert sum(task != "click" for _, task in drifted) <= 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["mmoe", "single_task"])
@pytest.mark.parametrize(("mode", "delay"), [("exposure", "wait"), ("exposure", "fnc_in_loss"), ("implicit", "wait")])
def test_a_restored_trainer_goes_on_bit_by_bit(
    make_settings, layout_of, make_stream, assert_same, model, mode, delay, precision
) -> None:
    tasks = [{"name": "content_view"}, {"name": "click", "delay": delay}, {"name": "purchase", "delay": delay}]
    settings = make_settings(model={"name": model}, mode=mode, tasks=tasks, train={"precision": precision})
    batches = make_stream(settings, 60)
    straight = Trainer(settings, layout_of(settings))
    for batch in batches[:31]:
        straight.step(batch)
    groups, state = everything(straight)
    resumed = Trainer(settings, layout_of(settings))
    resumed.restore(groups, state)
    assert_same(straight.save(), resumed.save())
    for batch in batches[31:]:
        straight.step(batch)
        resumed.step(batch)
        assert straight.losses == resumed.losses
    assert_same(straight.save(), resumed.save())
    assert straight.quality.report() == resumed.quality.report()
    assert straight.quality.report()["content_view"]["ranking"]["hr@10"] is not None


FUNNEL = [
    {"name": "content_view"},
    {"name": "click", "window": "30m"},
    {"name": "purchase", "window": "24h", "parent": "click"},
]


@pytest.mark.parametrize(
    "options",
    [
        *({"train": {"balancing": name}} for name in names("learner.balancing") if name not in ("upgrad", "pcgrad")),
        {"tasks": FUNNEL, "train": {"inverse_propensity": 0.1, "calibration": True}},
        {"train": {"calibration": True}},
        {"tasks": [{**task, "positive_weight": 2.0, "focal_gamma": 1.0} for task in FUNNEL]},
        {"tasks": [{**task, "delay": "es_dfm"} for task in FUNNEL], "train": {"calibration": True}},
        {"train": {"l1": 1e-4, "l2": 1e-3, "dropout": 0.3}},
        {"model": {"name": "ple"}, "train": {"dropout": 0.3}},
        {"embedding": {"accumulator_half_life": "20s"}},
    ],
    ids=str,
)
def test_with_any_option_a_restored_trainer_goes_on_bit_by_bit(
    make_settings, layout_of, make_stream, assert_same, monkeypatch, tmp_path, options
) -> None:
    """Through a snapshot on disk, whose writer may not mind a group without arrays; with looks at the gradients."""
    monkeypatch.setattr(learner.trainer, "_LOOK_EVERY", 7)
    settings = make_settings(**options)
    layout, batches = layout_of(settings), make_stream(settings, 40)
    straight, resumed = Trainer(settings, layout), Trainer(settings, layout)
    for batch in batches[:21]:
        straight.step(batch)
    groups, state = straight.save()
    with SnapshotStore(tmp_path) as store:
        store.publish(
            groups,
            {"learner": state},
            created_ms=0,
            event_time_ms=0,
            n_events=0,
            offsets={},
            settings_fingerprint="",
            tasks=layout.tasks,
        )
        saved = store.load()
    resumed.restore(saved.groups, saved.states["learner"])
    assert_same(straight.save(), resumed.save())
    for batch in batches[21:]:
        straight.step(batch)
        resumed.step(batch)
    assert_same(straight.save(), resumed.save())
    assert straight.cosines == resumed.cosines
    assert straight.gate_entropies == resumed.gate_entropies


def test_looking_at_gradients_and_gates_does_not_change_what_is_learned(
    settings, layout, make_stream, assert_same, monkeypatch
) -> None:
    trainers = []
    for every in (3, 10_000):
        monkeypatch.setattr(learner.trainer, "_LOOK_EVERY", every)
        trainers.append(Trainer(settings, layout))
        for batch in make_stream(settings, 20):
            trainers[-1].step(batch)
    looked, plain = trainers
    assert_same(looked.save(), plain.save())
    assert plain.cosines == {}
    assert set(looked.cosines) <= {("content_view", "click"), ("content_view", "purchase"), ("click", "purchase")}
    assert looked.cosines
    assert all(-1.0001 < cosine < 1.0001 for cosine in looked.cosines.values())
    assert list(looked.gate_entropies) == list(layout.tasks)
    assert all(0 < entropy < 1.0001 for entropy in looked.gate_entropies.values())


def test_calibration_changes_what_is_served_and_measured_and_nothing_else(
    make_settings, layout_of, make_stream, assert_same
) -> None:
    """An outcome's stored logit, which its label will be measured by, is the calibrated one of that moment."""
    on, off = make_settings(train={"calibration": True}), make_settings()
    layout = layout_of(on)
    with_it, without = Trainer(on, layout), Trainer(off, layout)
    for batch in make_stream(on, 30):
        theta = copy.deepcopy(with_it.readout.platt)
        with_it.step(batch)
        without.step(batch)
    assert_same(weights(with_it), weights(without))
    slot = batch.slot[batch.slot >= 0]
    served, plain = stored_logits(with_it, slot), stored_logits(without, slot)
    np.testing.assert_allclose(served, theta.logits(plain), rtol=1e-6)
    assert (served[:, 1:] != plain[:, 1:]).any(0).all()
    np.testing.assert_array_equal(served[:, 0], plain[:, 0])


def test_what_is_served_is_the_learners_own_along_a_calibrated_funnel(
    make_settings, layout_of, make_stream, make_rows
) -> None:
    settings = make_settings(tasks=FUNNEL, train={"precision": "float32", "dropout": 0.2, "calibration": True})
    layout = layout_of(settings)
    trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
    for batch in make_stream(settings, 40):
        trainer.step(batch)
    rows = make_rows(layout, 60, rng)
    served = FrozenModel(settings, layout, everything(trainer)[0]).probabilities(rows)
    fresh = make_stream(settings, 1, n=60)[0]
    slot = np.arange(60)
    trainer.step(waiting(replace(fresh, rows=rows, sampled=np.ones(60, np.bool_)), slot))
    np.testing.assert_allclose(served[:, 1:], sigmoid(stored_logits(trainer, slot))[:, 1:], rtol=1e-5)
    assert (served[:, 2] <= served[:, 1]).all()
    assert (trainer.readout.platt.slopes[1:] != 1).all()


def test_learning_a_funnel_finds_the_true_probabilities(make_settings, layout_of, make_batch) -> None:
    settings = make_settings(
        tasks=[{**task, "delay": "wait"} for task in FUNNEL],
        train={"inverse_propensity": 0.1, "learning_rate": 0.002},
        model={"expert_layers": (32, 16), "tower": 16},
    )
    layout = layout_of(settings)
    trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
    for index in range(250):
        batch = make_batch(layout, 128, rng, index)
        batch.rows.dense[:] = 0
        odd = batch.rows.ids[:, 1] % 2
        click = rng.random(128) < np.where(odd, 0.1, 0.6)
        purchase = click & (rng.random(128) < np.where(odd, 0.9, 0.6))
        labels = np.stack([click, click, purchase], 1).astype(np.float32)
        trainer.step(replace(batch, labels=labels))
    report = trainer.quality.report()
    for task, ne in (("click", 0.85), ("purchase", 0.95)):
        assert report[task]["last_half"]["ne"] < ne
        assert report[task]["last_half"]["calibration"] == pytest.approx(1.0, abs=0.1)


def test_what_a_declared_value_does_by_itself_is_learned_in_the_wide_part(make_settings, layout_of, make_batch) -> None:
    settings = make_settings()
    layout = layout_of(settings)
    trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
    column = layout.fields.index("item.category")
    for index in range(60):
        batch = make_batch(layout, 128, rng, index)
        p = np.where(batch.rows.ids[:, column] % 2 == 0, 0.8, 0.1)[:, None]
        trainer.step(replace(batch, labels=(rng.random(batch.labels.shape) < p).astype(np.float32)))
    wide = WideWeights(settings.embedding, layout.slots, trainer.network.n_wide)
    wide.load(trainer.save()[0]["wide"])
    added = wide.add_up(batch.rows.ids).numpy()
    even = batch.rows.ids[:, column] % 2 == 0
    assert (added[even].mean(0) > added[~even].mean(0) + 0.1).all()


def test_the_wide_part_forgets_its_steps_with_the_embeddings(make_settings, layout_of, make_batch) -> None:
    steps = {}
    for half_life in ("0s", "2s"):
        settings = make_settings(embedding={"accumulator_half_life": half_life})
        layout = layout_of(settings)
        trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
        for index in range(30):
            trainer.step(make_batch(layout, 64, rng, index))
        steps[half_life] = trainer.save()[0]["wide"]["accumulators"].max()
    assert steps["2s"] < steps["0s"] / 2


def test_in_bfloat16_it_learns_as_well_as_in_float32(make_settings, layout_of, make_batch) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        settings = make_settings(train={"precision": precision})
        layout = layout_of(settings)
        trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
        for index in range(100):
            batch = make_batch(layout, 128, rng, index)
            p = np.where(batch.rows.ids[:, 1] % 2 == 0, 0.8, 0.1)[:, None]
            trainer.step(replace(batch, labels=(rng.random(batch.labels.shape) < p).astype(np.float32)))
        losses[precision] = last_half_ne(trainer)
    assert losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)


def test_a_trainer_restored_before_its_first_step_is_a_fresh_one(settings, layout, make_stream, assert_same) -> None:
    fresh, resumed = Trainer(settings, layout), Trainer(settings, layout)
    resumed.restore(*everything(fresh))
    for batch in make_stream(settings, 5):
        fresh.step(batch)
        resumed.step(batch)
    assert_same(fresh.save(), resumed.save())


def test_measuring_counts_and_teaches_nothing(settings, layout, make_stream, make_batch, assert_same) -> None:
    trainer, batches = Trainer(settings, layout), make_stream(settings, 12)
    for batch in batches:
        trainer.step(batch)
    before, report = everything(trainer)[0], trainer.quality.report()
    slot = batches[-1].slot[batches[-1].slot >= 0]
    known = np.zeros((len(slot), 3), np.bool_)
    known[:, 1:] = True
    trainer.measure(only_matured(batches[-1], slot, np.zeros((len(slot), 3), np.float32), known))
    after = everything(trainer)[0]
    for group in ("dense", "optimizer", "table", "base_rates", "examples", "calibration", "balancing"):
        assert_same(before[group], after[group])
    assert trainer.quality.report()["click"]["examples"] == report["click"]["examples"] + len(slot)


def test_an_unknown_component_is_refused_with_the_known_ones(make_settings, layout_of) -> None:
    for section, package in (
        ({"model": {"name": "mmoe2"}}, "learner.models"),
        ({"train": {"balancing": "mmoe2"}}, "learner.balancing"),
        ({"evaluation": {"detector": "mmoe2"}}, "learner.drift"),
    ):
        settings = make_settings(**section)
        with pytest.raises(ValueError, match=f"`{package}`: found `mmoe2`, expected one of"):
            Trainer(settings, layout_of(settings))


def test_threads_are_as_set(make_settings) -> None:
    before = torch.get_num_threads()
    try:
        use_threads(make_settings(train={"threads": 2}))
        assert torch.get_num_threads() == 2
        use_threads(make_settings())
        assert 1 <= torch.get_num_threads() <= 4
    finally:
        torch.set_num_threads(before)
