"""What a trained model rests on, looked at from the outside."""

import numpy as np
import pytest

from features.schema import FeatureSchema
from learner.inspection import LastRows, gate_use, importances, reliability
from learner.prequential import TaskQuality
from learner.trainer import Trainer

CLICK = 1


@pytest.fixture
def settings(make_settings):
    return make_settings(
        fields=[{"source": "item.category"}, {"source": "item.price", "kind": "numeric"}],
        embedding={"max_mib": 1.0, "learning_rate": 0.3, "admit_after": 1},
        train={"learning_rate": 0.02},
    )


@pytest.fixture
def learned(settings, layout_of, make_batch):
    """A trainer whose clicks depend on the category's id and on the price alone, and the rows it kept."""
    layout, rng = layout_of(settings), np.random.default_rng(0)
    price = layout.dense.index("item.price value")
    trainer = Trainer(settings, layout)
    last = LastRows(trainer, n_rows=1_000)
    for index in range(60):
        batch = make_batch(layout, 128, rng, index)
        logits = np.where(batch.rows.ids[:, 2] % 2 == 0, 2.0, -2.0) + 1.5 * batch.rows.dense[:, price]
        batch.labels[:, CLICK] = rng.random(128) < 1 / (1 + np.exp(-logits))
        trainer.step(batch)
        last.take(batch)
    return trainer, last


def test_the_fields_that_labels_depend_on_are_found_and_no_other_seems_to_matter(settings, learned):
    trainer, last = learned
    rows, labels = last.of(CLICK)
    found = importances(trainer, FeatureSchema.of(settings), CLICK, rows, labels, seed=0)
    assert {one.field for one in found[:2]} == {"item.category, embedding", "item.price, number"}
    assert all(one.ne > 0.1 and one.ne > 5 * one.error > 0 for one in found[:2])
    assert all(one.ne < 0.05 for one in found[2:])
    assert len({one.field for one in found}) == len(found)


def test_every_column_belongs_to_one_field(settings, learned):
    schema = FeatureSchema.of(settings)
    assert sum(n_columns for _, n_columns in schema.dense_groups) == len(schema.layout.dense)
    rows, labels = learned[1].of(CLICK)
    n_fields = len(importances(learned[0], schema, CLICK, rows, labels, seed=0))
    assert n_fields == len(schema.layout.fields) + len(schema.event_types) + len(schema.dense_groups)


def test_labels_of_one_class_have_no_importances(settings, learned):
    rows, labels = learned[1].of(CLICK)
    assert importances(learned[0], FeatureSchema.of(settings), CLICK, rows, np.zeros_like(labels), seed=0) == []


def test_looking_leaves_the_trainer_as_it_was(settings, learned, assert_same):
    trainer, last = learned
    before = trainer.save()
    rows, labels = last.of(CLICK)
    importances(trainer, FeatureSchema.of(settings), CLICK, rows, labels, seed=0)
    gate_use(trainer, rows)
    assert_same(trainer.save(), before)


def test_the_last_rows_are_kept_with_the_labels_that_became_known(settings, layout_of, make_stream):
    layout = layout_of(settings)
    trainer, n_rows = Trainer(settings, layout), 40
    last = LastRows(trainer, n_rows)
    assert last.of(CLICK) is None
    told = []
    shown = {}
    for batch in make_stream(settings, 9):
        trainer.step(batch)
        last.take(batch)
        shown |= dict(zip(batch.slot.tolist(), batch.rows.ids.tolist(), strict=True))
        known = batch.matured_known[:, CLICK]
        told += [
            (shown[slot], label)
            for slot, label in zip(
                batch.matured_slot[known].tolist(), batch.matured_labels[known, CLICK].tolist(), strict=True
            )
        ]
    rows, labels = last.of(CLICK)
    assert list(zip(rows.ids.tolist(), labels.tolist(), strict=True)) == told[-n_rows:]


def test_gates_are_averaged_per_task_over_the_experts(learned, settings, make_settings, layout_of):
    rows, _ = learned[1].of(CLICK)
    names, weights, entropies = gate_use(learned[0], rows)
    assert names == ["expert 1", "expert 2"]
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert (entropies <= 1.0001).all()
    ungated = make_settings(model={"name": "shared_bottom"})
    assert gate_use(Trainer(ungated, layout_of(ungated)), rows) is None


def test_points_of_a_calibrated_score_lie_on_the_diagonal_and_those_of_a_bold_one_do_not():
    rng = np.random.default_rng(0)
    logits = rng.normal(-2, 1.5, 40_000)
    labels = (rng.random(40_000) < 1 / (1 + np.exp(-logits))).astype(np.float32)

    def points(scores):
        quality = TaskQuality(0.5, 1_000)
        quality.update(scores.astype(np.float32), labels, 0)
        return reliability(quality.all())

    for point in points(logits):
        assert abs(point["predicted"] - point["observed"]) < 4 * np.sqrt(point["positives"]) / point["examples"]
    assert sum(point["examples"] for point in points(logits)) == 40_000
    assert len(points(logits)) == 12
    assert points(2 * logits)[-1]["predicted"] > points(2 * logits)[-1]["observed"] + 0.05
    assert reliability(TaskQuality(0.5, 1_000).all()) == []
