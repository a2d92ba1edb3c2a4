"""The pair that tells what tasks gain from each other: its own data, and no trace in the model that is served."""

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from contracts.batch import Barrier
from contracts.settings import Settings
from learner.gain import MultiTaskGain, sampled
from learner.loop import LearnerLoop
from learner.metrics import LearnerMetrics
from learner.trainer import Trainer

SHARE = {"evaluation": {"shadow_share": 0.5}}


@pytest.fixture
def one_row(layout_of, make_batch):
    """A last batch, of one row of one of the users: what the pair has gathered by then is learned."""

    def make(settings):
        for seed in range(20):
            batch = make_batch(layout_of(settings), 1, np.random.default_rng(seed), 20)
            if sampled(batch.rows.ids[:, 0], settings.evaluation.shadow_share).all():
                return batch
        raise AssertionError

    return make


def test_with_all_users_its_multi_task_half_is_the_served_model(
    make_settings, layout_of, make_stream, assert_same
) -> None:
    settings = make_settings(evaluation={"shadow_share": 1.0})
    layout = layout_of(settings)
    pair, served = MultiTaskGain(settings, layout), Trainer(settings, layout)
    for batch in make_stream(settings, 12):
        plain = replace(batch, truth=None, ranking=None, new_item_events=np.zeros(3, np.int64))
        pair.step(batch)
        served.step(plain)
    assert_same(pair.multi.save(), served.save())


def test_each_label_of_the_share_is_learned_once_by_both_and_no_other(
    make_settings, layout_of, make_stream, one_row
) -> None:
    settings = make_settings(**SHARE)
    pair = MultiTaskGain(settings, layout_of(settings))
    owner: dict[int, bool] = {}
    expected = np.zeros(3, np.int64)
    for batch in [*make_stream(settings, 12), one_row(settings)]:
        chosen = sampled(batch.rows.ids[:, 0], 0.5)
        owner |= dict(zip(batch.slot.tolist(), chosen.tolist(), strict=True))
        expected += batch.learn[chosen].sum(0)
        expected += batch.matured_learn[[owner[slot] for slot in batch.matured_slot.tolist()]].sum(0)
        pair.step(batch)
    assert pair.multi.n_learned.tolist() == pair.single.n_learned.tolist() == expected.tolist()


def test_labels_of_exposures_from_before_a_restart_are_passed_over(
    make_settings, make_stream, layout_of, one_row
) -> None:
    settings = make_settings(**SHARE)
    stream = make_stream(settings, 8)
    pair = MultiTaskGain(settings, layout_of(settings))
    for batch in [*stream[4:], one_row(settings)]:
        pair.step(batch)
    # Of the four batches that it saw, the first two had their labels in the last two.
    shown = sum(int((sampled(batch.rows.ids[:, 0], 0.5) & (batch.slot >= 0)).sum()) for batch in stream[4:6])
    assert pair.multi.quality.report()["click"]["examples"] == shown + 1 > 1


def test_the_served_model_does_not_notice_and_prometheus_hears_of_each_task(
    make_settings, layout_of, make_stream, assert_same
) -> None:
    settings = make_settings(**SHARE)
    layout, found = layout_of(settings), []
    for pair in (None, MultiTaskGain(settings, layout)):
        trainer, registry = Trainer(settings, layout), CollectorRegistry()
        metrics = LearnerMetrics(registry, "adwin")
        stream = make_stream(settings, 12)
        end = Barrier({}, {}, {}, stream[-1].watermark_ms, 12)
        LearnerLoop(settings, trainer, metrics, None, pair=pair).run([*stream, end])
        found.append(trainer.save())
        told = {task: registry.get_sample_value("anabranch_mtl_gain_ne", {"task": task}) for task in layout.tasks}
        if pair is None:
            assert set(told.values()) == {None}
        else:
            multi, single = (one.quality.window(end.event_time_ms) for one in (pair.multi, pair.single))
            assert told == {task: single[task]["ne"] - multi[task]["ne"] for task in layout.tasks}
            assert any(told.values())
    assert_same(*found)


def test_a_task_with_few_labels_gains_from_others_of_the_same_cause(make_settings, layout_of, make_batch) -> None:
    """Purchases depend on the item as clicks and views do, and one row in sixteen tells of them."""
    settings = make_settings(
        evaluation={"shadow_share": 1.0},
        embedding={"max_mib": 1.0, "learning_rate": 0.1},
        train={"learning_rate": 0.001},
    )
    layout, rng = layout_of(settings), np.random.default_rng(0)
    pair = MultiTaskGain(settings, layout)
    for index in range(120):
        batch = make_batch(layout, 128, rng, index)
        batch.rows.dense[:] = 0
        odds = np.where(batch.rows.ids[:, 1] % 2, 0.8, 0.2)
        batch.labels[:] = rng.random(batch.labels.shape) < odds[:, None]
        known = np.ones_like(batch.known)
        known[:, 2] = np.arange(128) % 16 == 0
        pair.step(replace(batch, known=known, learn=known))
    assert pair.ne(batch.watermark_ms)["purchase"] > 0.05


def test_a_window_in_which_only_one_of_the_two_learned_tells_nothing(make_settings, layout_of, make_stream) -> None:
    settings = make_settings(**SHARE)
    pair = MultiTaskGain(settings, layout_of(settings))
    stream = make_stream(settings, 6)
    for batch in stream:
        pair.step(batch)
    now_ms = stream[-1].watermark_ms
    assert not any(np.isnan(list(pair.ne(now_ms).values())))
    pair.single.quality.update(1, np.zeros(1, np.float32), np.ones(1, np.float32), now_ms)
    told = pair.ne(now_ms)
    assert np.isnan(told["click"])
    assert not np.isnan(told["purchase"])


def test_a_share_is_always_of_the_same_users_and_as_big_as_it_says() -> None:
    users = np.arange(1, 20_001) * 7
    small, big = sampled(users, 0.1), sampled(users, 0.3)
    assert small.mean() == pytest.approx(0.1, abs=0.01)
    assert not (small & ~big).any()
    assert (sampled(users, 1.0).all(), sampled(users, 0.0).any()) == (True, False)


def test_single_task_nets_have_nothing_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match=r"found model\.name single_task"):
        Settings.model_validate({"model": {"name": "single_task"}, **SHARE})
