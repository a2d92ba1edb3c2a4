"""Variants on one stream: what they learn, and how sure a difference is."""

import numpy as np
import pytest

from learner.comparison import LEAST_BLOCKS, Comparison, differences, resample
from learner.prequential import TaskQuality, summary
from learner.trainer import Trainer

HOUR_MS = 3_600_000


def blocks_of(logits, labels):
    quality = TaskQuality(0.5, HOUR_MS)
    quality.update(logits.astype(np.float32), labels.astype(np.float32), 0)
    return quality.blocks()


def scored(n=4_000, seed=0):
    """True logits, a logit that sees less, and labels."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-1, 1.5, n)
    return truth, truth + rng.normal(0, 1, n), rng.random(n) < 1 / (1 + np.exp(-truth))


def test_a_better_score_of_the_same_examples_is_told_apart():
    truth, noisy, labels = scored()
    found = differences(blocks_of(noisy, labels), blocks_of(truth, labels), seed=0)
    assert found["ne"]["low"] < found["ne"]["value"] < found["ne"]["high"] < 0
    assert 0 < found["auc"]["low"] < found["auc"]["value"] < found["auc"]["high"]
    assert (32 <= found["blocks"] <= 64, "note" in found) == (True, False)


def test_the_difference_is_that_of_the_whole_streams_metrics():
    truth, noisy, labels = scored()
    base, other = blocks_of(noisy, labels), blocks_of(truth, labels)
    found = differences(base, other, seed=0)
    for name in ("ne", "auc"):
        whole = [summary(sum(blocks[1:], blocks[0]))[name] for blocks in (base, other)]
        assert found[name]["value"] == whole[1] - whole[0]


def test_an_interval_holds_the_true_difference_about_19_times_in_20():
    """Two scores that are equally far from the truth: their true difference is none."""
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth, one, labels = scored(2_000, seed)
        found = differences(
            blocks_of(one, labels), blocks_of(truth + rng.permutation(one - truth), labels), seed=seed, n_resamples=400
        )
        held += found["ne"]["low"] <= 0 <= found["ne"]["high"]
    assert 50 <= held < 60


def test_pairing_takes_out_what_is_hard_for_both():
    """As wide as two unpaired scores would have it, the interval would hide a difference of a hundredth."""
    truth, _, labels = scored()
    base, other = blocks_of(truth, labels), blocks_of(truth * 0.9, labels)
    paired = differences(base, other, seed=0)["ne"]
    weights = resample(len(base), 2000, np.random.default_rng(0))
    alone = []
    for row in weights[:200]:
        first, *others = [base[n] for n in np.repeat(np.arange(len(base)), row)]
        alone.append(summary(sum(others, first))["ne"])
    assert paired["high"] - paired["low"] < 0.5 * (np.quantile(alone, 0.975) - np.quantile(alone, 0.025))


def test_the_same_seed_gives_the_same_interval():
    truth, noisy, labels = scored()
    base, other = blocks_of(noisy, labels), blocks_of(truth, labels)
    first, again, another = (differences(base, other, seed=seed) for seed in (3, 3, 4))
    assert first == again != another


def test_a_resample_is_made_of_runs_of_neighbours_and_as_long_as_the_stream():
    weights = resample(27, 500, np.random.default_rng(0))
    assert (weights.sum(1) == 27).all()
    assert abs(weights.mean(0) - 1).max() < 0.2, "some blocks are drawn more often than others"
    # Runs of three: a block's neighbours are drawn with it.
    centred = weights - weights.mean(0)
    neighbours = (centred * np.roll(centred, 1, 1)).mean() / (centred**2).mean()
    assert 0.5 < neighbours < 0.8


def test_too_few_blocks_or_positives_are_told_instead_of_an_interval():
    truth, noisy, labels = scored(16 * (LEAST_BLOCKS - 1))
    found = differences(blocks_of(noisy, labels), blocks_of(truth, labels), seed=0)
    assert found["ne"]["value"] is not None
    assert (found["ne"]["low"], found["ne"]["high"]) == (None, None)
    assert f"{LEAST_BLOCKS - 1}, needed {LEAST_BLOCKS}" in found["note"]
    truth, noisy, labels = scored()
    for n_positives, told in ((24, "24, needed 25"), (40, "so few blocks")):
        labels = np.arange(len(truth)) < n_positives
        found = differences(blocks_of(noisy, labels), blocks_of(truth, labels), seed=0)
        assert (found["auc"]["low"], told in found["note"]) == (None, True), found
    nothing = differences([], [], seed=0)
    assert (nothing["ne"]["value"], nothing["blocks"]) == (None, 0)


def test_blocks_of_other_examples_are_refused():
    truth, noisy, labels = scored()
    with pytest.raises(ValueError, match="blocks of the same examples"):
        differences(blocks_of(noisy, labels), blocks_of(truth, ~labels), seed=0)


def run(settings, stream, layout, variants=None):
    base = Trainer(settings, layout)
    comparison = Comparison(settings, layout, variants or {})
    for batch in stream:
        base.step(batch)
        comparison.step(batch)
    return base, comparison


def test_a_variant_learns_as_if_it_were_alone_and_the_base_does_not_notice(
    make_settings, make_stream, layout_of, assert_same
):
    settings = make_settings()
    variants = {
        "ple": make_settings(model={"name": "ple"}),
        "single_task": make_settings(model={"name": "single_task"}),
        "same": settings,
    }
    stream, layout = make_stream(settings, 12), layout_of(settings)
    base, comparison = run(settings, stream, layout, variants)
    for name, variant in variants.items():
        alone, _ = run(variant, stream, layout)
        assert_same(comparison.trainers[name].save(), alone.save())
    assert_same(base.save(), run(settings, stream, layout)[0].save())
    report = comparison.report(base.quality)
    assert list(report) == ["ple", "single_task", "same"]
    for task, found in report["same"].items():
        for part in ("all", "last_half"):
            assert [found["difference"][part][name]["value"] for name in ("ne", "auc")] == [0, 0], (task, part)
    assert report["ple"]["content_view"]["difference"]["all"]["ne"]["value"] != 0


def test_a_variant_that_waits_learns_each_label_once_when_its_window_closes(
    make_settings, make_stream, layout_of, assert_same
):
    def tasks(delay):
        return [{"name": "content_view"}] + [{"name": name, "delay": delay} for name in ("click", "purchase")]

    at_once, waits = (make_settings(tasks=tasks(delay)) for delay in ("fnc_in_loss", "wait"))
    layout = layout_of(at_once)
    _, comparison = run(at_once, make_stream(at_once, 10), layout, {"delay=wait": waits})
    alone, _ = run(waits, make_stream(waits, 10), layout)
    assert_same(comparison.trainers["delay=wait"].save(), alone.save())
