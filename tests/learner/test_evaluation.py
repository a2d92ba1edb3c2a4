"""Metrics against exact references, and the law that how a stream is cut into batches does not matter."""

import json
import math

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.settings import Task
from learner.evaluation import Quality
from learner.prequential import FIRST_BLOCK, MAX_BLOCKS, TaskQuality, summary

HOUR_MS = 3_600_000


def stream(n, seed=0, rate_logit=-1.5):
    random = np.random.default_rng(seed)
    logits = (random.normal(size=n) * 1.5 + rate_logit).astype(np.float32)
    labels = (random.random(n) < 1 / (1 + np.exp(-0.8 * logits - 0.2))).astype(np.float32)
    return logits, labels


def exact(logits, labels, threshold):
    """Straight from the definitions, in float64."""
    z, y = logits.astype(np.float64), labels > 0.5
    p = 1 / (1 + np.exp(-z))
    n, positives = len(z), int(y.sum())
    loss = -np.mean(np.where(y, np.log(p), np.log1p(-p)))
    rate = positives / n
    pairs = (z[y][:, None] > z[~y][None, :]).sum() + 0.5 * (z[y][:, None] == z[~y][None, :]).sum()
    yes = p >= threshold
    hits = int((yes & y).sum())
    return {
        "examples": n,
        "positives": positives,
        "auc": pairs / (positives * (n - positives)),
        "log_loss": loss,
        "ne": loss / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)),
        "calibration": p.sum() / positives,
        "accuracy": np.mean(yes == y),
        "precision": hits / yes.sum(),
        "recall": hits / positives,
        "f1": 2 * hits / (yes.sum() + positives),
    }


def feed(quality, logits, labels, cuts, time_ms=0):
    for part in np.split(np.arange(len(logits)), cuts):
        times = time_ms[part] if isinstance(time_ms, np.ndarray) else time_ms
        quality.update(logits[part], labels[part], times)


def same(first, second):
    (plain, arrays), (other_plain, other_arrays) = first.state(), second.state()
    assert plain == other_plain
    assert arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, other_arrays[name], strict=True)


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_every_metric_equals_its_definition(threshold):
    logits, labels = stream(3000)
    quality = TaskQuality(threshold, HOUR_MS)
    feed(quality, logits, labels, [10, 11, 700, 2048])
    found, expected = summary(quality.all()), exact(logits, labels, threshold)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        # The bins of the histogram limit the AUC; everything else is exact to the fixed point.
        assert value == pytest.approx(expected[name], abs=2e-4 if name == "auc" else 1e-6), name


def test_the_auc_of_ties_is_a_half_and_of_a_perfect_order_one():
    labels = np.array([0, 0, 1, 1], np.float32)
    for logits, auc in (([1, 1, 1, 1], 0.5), ([-1, 0, 1, 2], 1.0), ([2, 1, 0, -1], 0.0), ([-90, -80, 80, 90], 1.0)):
        quality = TaskQuality(0.5, HOUR_MS)
        quality.update(np.array(logits, np.float32), labels, 0)
        assert summary(quality.all())["auc"] == auc


def test_a_constant_that_knows_the_base_rate_has_ne_one_and_calibration_one():
    labels = np.repeat(np.array([1, 0, 0, 0], np.float32), 500)
    quality = TaskQuality(0.5, HOUR_MS)
    quality.update(np.full(2000, math.log(0.25 / 0.75), np.float32), labels, 0)
    found = summary(quality.all())
    assert found["ne"] == pytest.approx(1, abs=1e-6)
    assert found["calibration"] == pytest.approx(1, abs=1e-6)


def test_what_is_undefined_is_none_and_the_report_is_strict_json():
    quality = TaskQuality(0.5, HOUR_MS)
    assert quality.update(np.empty(0, np.float32), np.empty(0, np.float32), 0) is None
    assert set(summary(quality.all()).values()) == {0, None}
    quality.update(np.full(5, -3, np.float32), np.zeros(5, np.float32), 0)
    found = summary(quality.all())
    assert [name for name, value in found.items() if value is None] == [
        "auc", "ne", "calibration", "precision", "recall", "f1",
    ]  # fmt: skip
    assert found["accuracy"] == 1
    json.dumps(found, allow_nan=False)


def test_a_logit_of_nan_or_infinity_counts_as_wrong_not_as_absent():
    quality = TaskQuality(0.5, HOUR_MS)
    loss = quality.update(
        np.array([np.nan, np.nan, np.inf, -np.inf], np.float32), np.array([0, 1, 0, 1], np.float32), 0
    )
    assert loss == pytest.approx(60)
    assert summary(quality.all())["auc"] == 0
    assert summary(quality.all())["accuracy"] == 0


def test_update_tells_the_mean_log_loss_of_its_examples():
    logits, labels = stream(500)
    quality = TaskQuality(0.5, HOUR_MS)
    quality.update(logits[:100], labels[:100], 0)
    expected = exact(logits[100:], labels[100:], 0.5)["log_loss"]
    assert quality.update(logits[100:], labels[100:], 0) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 3000),
    first=st.lists(st.integers(0, 3000), max_size=12),
    second=st.lists(st.integers(0, 3000), max_size=12),
    seed=st.integers(0, 99),
)
def test_a_stream_cut_into_any_batches_leaves_the_same_state(n, first, second, seed):
    logits, labels = stream(n, seed)
    times = np.random.default_rng(seed).integers(0, 3 * HOUR_MS, n)
    one, other = TaskQuality(0.3, HOUR_MS), TaskQuality(0.3, HOUR_MS)
    feed(one, logits, labels, sorted(cut for cut in first if cut < n), times)
    feed(other, logits, labels, sorted(cut for cut in second if cut < n), times)
    same(one, other)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 12_000))
def test_the_last_half_is_the_half_and_at_most_one_block_more(n):
    logits, labels = stream(n)
    quality = TaskQuality(0.5, HOUR_MS)
    feed(quality, logits, labels, range(0, n, 997))
    block = quality.last_half()
    taken = summary(block)["examples"]
    one_block = max(FIRST_BLOCK, n // (MAX_BLOCKS // 2))
    assert n - n // 2 <= taken <= n - n // 2 + one_block
    expected = TaskQuality(0.5, HOUR_MS)
    expected.update(logits[n - taken :], labels[n - taken :], 0)
    np.testing.assert_array_equal(block.counts, expected.all().counts)
    np.testing.assert_array_equal(block.histogram, expected.all().histogram)


def test_blocks_add_up_to_the_whole():
    logits, labels = stream(1000)
    parts = []
    for part in (slice(0, 300), slice(300, 1000)):
        quality = TaskQuality(0.5, HOUR_MS)
        quality.update(logits[part], labels[part], 0)
        parts.append(quality.all())
    whole = TaskQuality(0.5, HOUR_MS)
    whole.update(logits, labels, 0)
    assert summary(parts[0] + parts[1]) == summary(whole.all())


def test_memory_stays_the_same_however_long_the_stream():
    quality = TaskQuality(0.5, HOUR_MS)
    sizes = set()
    for n in (10, 10_000, 200_000):
        quality.update(*stream(n), 0)
        sizes.add(sum(array.nbytes for array in quality.state()[1].values()))
    assert len(sizes) == 1
    assert sizes.pop() < 1_500_000
    assert summary(quality.all())["examples"] == quality.n_examples == 210_010


def test_the_curve_falls_when_the_model_gets_better_and_ends_at_the_last_example():
    random = np.random.default_rng(0)
    labels = (random.random(20_000) < 0.3).astype(np.float32)
    skill = np.linspace(0, 3, 20_000)
    logits = (np.log(0.3 / 0.7) + skill * (labels - 0.3) + random.normal(size=20_000)).astype(np.float32)
    quality = TaskQuality(0.5, HOUR_MS)
    feed(quality, logits, labels, range(0, 20_000, 512))
    curve = quality.curve()
    assert MAX_BLOCKS // 2 <= len(curve) <= MAX_BLOCKS
    assert curve[-1].examples == 20_000
    assert curve[-1].ne < curve[0].ne
    assert curve[-1].auc > curve[0].auc


def test_the_window_forgets_what_is_older_and_ignores_what_comes_too_late():
    window_ms = 12_000  # twelve parts of one second
    quality = TaskQuality(0.5, window_ms)
    one = np.zeros(1, np.float32)

    def n(now_ms):
        return summary(quality.window(now_ms))["examples"]

    quality.update(one, one, 1_000)
    quality.update(one, one, np.array([5_000]))
    assert [n(5_000), n(12_999), n(13_000), n(16_999), n(17_000)] == [2, 2, 1, 1, 0]
    assert n(4_000) == 1
    quality.update(np.repeat(one, 3), np.repeat(one, 3), np.array([13_500, 1_500, 2_500]))
    assert n(13_999) == 3  # 5 s, 13.5 s and 2.5 s; 1.5 s is out of the window
    assert quality.n_examples == 5


def test_a_setting_that_makes_no_sense_is_named():
    with pytest.raises(ValueError, match="found 1"):
        TaskQuality(1, HOUR_MS)
    with pytest.raises(ValueError, match="found 0"):
        TaskQuality(0.5, 0)


# --- all tasks together ---

TASKS = (Task(name="click"), Task.model_validate({"name": "purchase", "threshold": 0.2}))


def drive(quality, seed, start=0, stop=8):
    for step in range(start, stop):
        random = np.random.default_rng([seed, step])
        for task in (0, 1):
            logits, labels = stream(40, seed * 100 + step + 50 * task)
            quality.update(
                task, logits, labels, 1000 * step,
                list_id=random.integers(0, 4, 40) + 10 * step, exposure_ms=np.full(40, 1000 * step),
                truth=1 / (1 + np.exp(-0.8 * logits - 0.2)),
            )  # fmt: skip
        quality.update_ranking(
            random.integers(0, 2, 6), random.normal(size=(6, 5)).astype(np.float32), random.random((6, 5), np.float32)
        )
        quality.count_new_items(np.array([1, 0]))
        quality.close_lists(1000 * step + 24 * HOUR_MS)
    return quality


def made():
    return Quality(TASKS, HOUR_MS, oracle=True, n_candidates=5)


def test_the_report_has_the_shape_of_the_design():
    report = drive(made(), 1).report()
    assert list(report) == ["click", "purchase"]
    click = report["click"]
    assert set(click) == {"examples", "positives", "all", "last_half", "ranking", "list", "oracle"}
    metrics = {"auc", "log_loss", "ne", "calibration", "accuracy", "precision", "recall", "f1"}
    assert set(click["all"]) == set(click["last_half"]) == metrics
    assert set(click["ranking"]) >= {"hr@10", "ndcg@10", "mrr", "sampled_auc"}
    assert set(click["list"]) == {"requests", "mrr", "ndcg@10"}
    assert set(click["oracle"]) == {"auc", "ne", "log_loss", "calibration", "last_half"}
    assert click["examples"] == 320
    assert click["ranking"]["new_item_events"] == 8
    assert click["ranking"]["events"] + report["purchase"]["ranking"]["events"] == 48
    json.dumps(report, allow_nan=False)


def test_nobody_beats_the_oracle_and_it_is_calibrated():
    quality = Quality(TASKS[:1], HOUR_MS, oracle=True)
    logits, labels = stream(20_000)
    truth = (1 / (1 + np.exp(-0.8 * logits - 0.2))).astype(np.float32)
    truth[::7] = np.nan
    quality.update(0, logits, labels, 0, truth=truth)
    report = quality.report()["click"]
    assert report["oracle"]["log_loss"] < report["all"]["log_loss"]
    assert report["oracle"]["calibration"] == pytest.approx(1, abs=0.05)
    assert "oracle" not in Quality(TASKS, HOUR_MS).report()["click"]


def test_quality_goes_on_from_a_saved_state_as_if_nothing_had_happened():
    straight = drive(made(), 3)
    state, arrays = drive(made(), 3, stop=5).state()
    resumed = made()
    resumed.restore(
        msgspec.msgpack.decode(msgspec.msgpack.encode(state)), safetensors.numpy.load(safetensors.numpy.save(arrays))
    )
    drive(resumed, 3, start=5)
    same(straight, resumed)
    straight.finish()
    resumed.finish()
    assert straight.report() == resumed.report()
    assert straight.window(7000) == resumed.window(7000)
    assert straight.window(7000)["click"]["examples"] == 320


def test_a_saved_state_is_a_copy():
    quality = drive(made(), 1)
    _, arrays = quality.state()
    before = {name: array.copy() for name, array in arrays.items()}
    drive(quality, 2)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


def test_the_state_of_other_tasks_is_refused():
    state, arrays = Quality(TASKS[:1], HOUR_MS).state()
    with pytest.raises(ValueError, match="purchase"):
        Quality(TASKS, HOUR_MS).restore(state, arrays)


def test_a_stream_without_truth_pays_nothing_for_the_oracle_and_may_tell_truth_later():
    quality = Quality(TASKS, HOUR_MS, oracle=True)
    logits, labels = stream(50)
    quality.update(0, logits, labels, np.int64(5), truth=np.full(50, np.nan, np.float32))
    assert "oracle" not in quality.report()["click"]
    state, arrays = quality.state()
    assert not [name for name in arrays if "oracle" in name]
    resumed = Quality(TASKS, HOUR_MS, oracle=True)
    resumed.restore(state, arrays)
    same(quality, resumed)
    resumed.update(0, logits, labels, 6, truth=np.full(50, 0.5, np.float32))
    assert "oracle" in resumed.report()["click"]


def test_a_state_with_a_missing_or_misshapen_part_is_refused_with_its_name():
    state, arrays = drive(made(), 1).state()
    for name in arrays:
        with pytest.raises(ValueError, match=name.split(".")[-1]):
            made().restore(state, {key: array for key, array in arrays.items() if key != name})
    with pytest.raises(ValueError, match=r"found int64\[3\]"):
        made().restore(state, {**arrays, "click.examples.counts": np.zeros(3, np.int64)})
    for part in state["parts"]:
        if part.endswith(".oracle"):
            continue  # a stream without truth saves none
        with pytest.raises(ValueError, match=part):
            made().restore({**state, "parts": {k: v for k, v in state["parts"].items() if k != part}}, arrays)


def test_a_changed_window_keeps_the_stream_and_starts_the_window_anew():
    quality = TaskQuality(0.5, HOUR_MS)
    quality.update(*stream(100), 1000)
    other = TaskQuality(0.5, 2 * HOUR_MS)
    other.restore(*quality.state())
    assert summary(other.all()) == summary(quality.all())
    assert summary(other.window(1000))["examples"] == 0
    assert summary(quality.window(1000))["examples"] == 100
