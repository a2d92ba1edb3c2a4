"""A model that was good and has long been worse than the base rate is not published, until it is good again."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from contracts.batch import Barrier
from contracts.settings import HOUR, MINUTE
from learner.loop import LearnerLoop
from learner.metrics import LearnerMetrics
from learner.snapshot import SnapshotStore
from learner.trainer import Trainer
from learner.watchdog import Watchdog


@pytest.fixture
def watch(make_settings):
    """Shows a task's normalised entropy at minutes of event time; gives whether it holds."""
    watchdog = Watchdog(("click",), make_settings().snapshot)

    def look(minute, ne, positives=500):
        watchdog.look({"click": {"ne": ne, "positives": positives}}, minute * MINUTE)
        return watchdog.held["click"]

    return look


def test_an_hour_above_holds_and_a_look_below_lets_go(watch):
    assert not watch(0, 0.9)
    assert not watch(10, 1.2)
    assert not watch(69, 1.2)
    assert watch(70, 1.2)
    assert watch(300, 1.01)
    assert not watch(301, 1.0)
    assert not watch(302, 1.2), "the hour begins anew"


def test_a_break_begins_the_hour_anew(watch):
    watch(0, 0.9)
    watch(10, 1.2)
    watch(40, 0.99)
    watch(50, 1.2)
    assert not watch(80, 1.2)
    assert watch(110, 1.2)


def test_a_new_model_that_was_never_good_is_published(watch):
    assert not any(watch(minute, 1.5) for minute in range(0, 600, 10))


@pytest.mark.parametrize(("ne", "positives"), [(None, 0), (0.2, 99), (5.0, 99)])
def test_a_window_that_tells_too_little_changes_nothing(watch, ne, positives):
    watch(0, 0.9)
    watch(10, 1.2)
    watch(40, ne, positives)
    assert watch(70, 1.2)
    assert watch(80, ne, positives)


def test_zero_never_holds(make_settings):
    watchdog = Watchdog(("click",), make_settings(snapshot={"hold_above_ne": 0}).snapshot)
    for minute in range(300):
        watchdog.look({"click": {"ne": 0.9 if minute < 10 else 2.0, "positives": 500}}, minute * MINUTE)
    assert not watchdog.held["click"]


def test_a_restored_watch_counts_on(make_settings):
    settings = make_settings().snapshot
    first, second = Watchdog(("click",), settings), Watchdog(("click",), settings)
    first.look({"click": {"ne": 0.9, "positives": 500}}, 0)
    first.look({"click": {"ne": 1.2, "positives": 500}}, 10 * MINUTE)
    second.restore(first.state())
    second.look({"click": {"ne": 1.2, "positives": 500}}, 10 * MINUTE + HOUR)
    assert second.held["click"]


def test_while_snapshots_are_held_there_are_no_deltas_and_none_behind_the_gap(
    make_settings, layout_of, make_batch, tmp_path
):
    settings = make_settings()
    layout, rng = layout_of(settings), np.random.default_rng(0)
    trainer, store = Trainer(settings, layout), SnapshotStore(tmp_path)
    loop = LearnerLoop(settings, trainer, LearnerMetrics(CollectorRegistry(), "adwin"), store)
    found = []

    def cut(*, is_delta=True):
        yield make_batch(layout, 32, rng, 1)
        yield Barrier({("events", 0): 1}, {}, {}, 1, 1, is_delta=is_delta)
        loop._writer.wait()
        found.append([len(list(store.deltas(version, 0))) for version in store.versions()])

    def stream():
        yield from cut(is_delta=False)
        yield from cut()
        for now_ms, ne in ((0, 0.9), (1, 1.5), (1 + 2 * HOUR, 1.5)):  # good once, then bad for long
            trainer.watchdog.look({"click": {"ne": ne, "positives": 500}}, now_ms)
        yield from cut()
        trainer.watchdog.look({"click": {"ne": 0.9, "positives": 500}}, 2 + 2 * HOUR)
        yield from cut()
        yield from cut(is_delta=False)
        yield from cut()

    loop.run(stream())
    assert found == [[0], [1], [1], [1], [0, 0], [0, 1]]  # those of a version before go


def test_publishing_is_held_and_resumes_by_itself_while_learning_goes_on(
    make_settings, layout_of, make_batch, tmp_path, caplog
):
    """Labels that follow a column; that are its opposite for a while; that follow it again."""
    settings = make_settings(snapshot={"hold_after": "2m"}, evaluation={"window": "5m"}, train={"learning_rate": 0.01})
    layout, rng = layout_of(settings), np.random.default_rng(0)
    registry = CollectorRegistry()
    trainer, store = Trainer(settings, layout), SnapshotStore(tmp_path, keep=100)
    metrics, published = LearnerMetrics(registry, "adwin"), []
    loop = LearnerLoop(settings, trainer, metrics, store, published.append, lambda: 0)
    held, learned = [], []

    def stream():
        for index in range(1500):  # a second of event time each
            batch = make_batch(layout, 32, rng, index)
            sign = rng.choice([-1, 1]) if 500 <= index < 1000 else 1
            labels = (sign * batch.rows.dense[:, [3]] > 0).repeat(3, 1).astype(np.float32)
            yield replace(batch, labels=labels)
            if index % 100 == 99:
                learned.append(int(trainer.n_learned.sum()))
                yield Barrier({("events", 0): index + 1}, {}, {}, batch.watermark_ms, index + 1)
                held.append(registry.get_sample_value("anabranch_snapshot_held", {"task": "click"}))

    with caplog.at_level(logging.INFO, "anabranch.learner"):
        loop.run(stream())
    numbers = [offsets["events", 0] for offsets in published]
    assert numbers[:5] == [100, 200, 300, 400, 500], "it learns"
    assert 1000 not in numbers, "a few minutes of contradictions"
    assert numbers[-1] == 1500, "it has recovered"
    assert held == [float((number + 1) * 100 not in numbers) for number in range(15)]
    assert learned == sorted(set(learned)), "learning went on all the time"
    assert store.load().manifest.offsets == {"events": {"0": 1500}}
    assert caplog.text.count("Snapshots are held back at") == 1
    assert caplog.text.count("no longer held back") == 1
