"""Ranking among sampled items, and order within a request, against the definitions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.ranking import ListQuality, RankingQuality


def ranked(scores, tie_breaks=None):
    scores = np.array(scores, np.float32)
    quality = RankingQuality(scores.shape[1])
    quality.update(scores, np.zeros_like(scores) if tie_breaks is None else np.array(tie_breaks, np.float32))
    return quality.summary()


def test_the_metrics_follow_from_the_rank_of_the_events_own_item():
    scores = np.tile(-np.arange(100, dtype=np.float32), (3, 1))
    for group, rank in enumerate((1, 4, 51)):
        scores[group, 0] = -(rank - 1) - 0.5 if rank > 1 else 1.0
    found = ranked(scores)
    assert found["events"] == 3
    assert found["hr@10"] == pytest.approx(2 / 3)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / math.log2(5)) / 3)
    assert found["mrr"] == pytest.approx((1 + 1 / 4 + 1 / 51) / 3)
    assert found["sampled_auc"] == pytest.approx((1 + 96 / 99 + 49 / 99) / 3)


def test_equal_scores_are_ordered_by_the_tie_breaks():
    assert ranked([[0, 0, 0]], [[0.5, 0.1, 0.2]])["mrr"] == 1
    assert ranked([[0, 0, 0]], [[0.5, 0.9, 0.2]])["mrr"] == 1 / 2
    assert ranked([[0, 0, 1]], [[0.5, 0.9, 0.2]])["mrr"] == 1 / 3


def test_a_model_that_gives_all_items_one_score_is_as_good_as_chance():
    random = np.random.default_rng(0)
    ties = random.random((4000, 100))
    found = ranked(np.zeros((4000, 100)), ties)
    assert found["hr@10"] == pytest.approx(0.1, abs=0.02)
    assert found["sampled_auc"] == pytest.approx(0.5, abs=0.02)


def test_an_own_item_without_a_score_ranks_behind_those_that_have_one():
    assert ranked([[np.nan, -5, -9]])["sampled_auc"] == 0
    assert ranked([[-5, np.nan, np.nan]])["sampled_auc"] == 1


def test_no_ranking_is_none_and_a_wrong_width_is_named():
    quality = RankingQuality(100)
    assert quality.summary() == {"events": 0, "hr@10": None, "ndcg@10": None, "mrr": None, "sampled_auc": None}
    with pytest.raises(ValueError, match=r"\[G, 100\]; found \[2, 50\]"):
        quality.update(np.zeros((2, 50), np.float32), np.zeros((2, 50), np.float32))


# --- lists ---


def column(values, dtype=np.float32):
    return np.array(values, dtype)


def lists(slack_ms=1000, **more):
    return ListQuality(slack_ms, **more)


def test_a_request_is_judged_by_the_order_of_its_items():
    quality = lists()
    quality.update(column([7] * 4, np.int64), column([1, 3, 2, 0]), column([1, 0, 1, 0]), column([0] * 4, np.int64))
    quality.close_all()
    found = quality.summary()
    # Order of scores: no, yes, yes, no.
    assert found["requests"] == 1
    assert found["mrr"] == pytest.approx(1 / 2)
    ideal = 1 + 1 / math.log2(3)
    assert found["ndcg@10"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(4)) / ideal)


def test_the_eleventh_item_counts_for_mrr_but_not_for_ndcg():
    quality = lists()
    labels = column([0] * 10 + [1])
    quality.update(column([7] * 11, np.int64), column(-np.arange(11.0)), labels, column([0] * 11, np.int64))
    quality.close_all()
    assert quality.summary() == {"requests": 1, "mrr": pytest.approx(1 / 11), "ndcg@10": 0}


def test_requests_of_one_item_or_without_an_outcome_and_rows_of_no_request_do_not_count():
    quality = lists()
    quality.update(
        column([1, 2, 2, 0, 0], np.int64), column([1, 1, 2, 3, 4]), column([1, 0, 0, 1, 0]), np.zeros(5, int)
    )
    quality.close_all()
    assert quality.summary() == {"requests": 0, "mrr": None, "ndcg@10": None}


def test_a_request_waits_until_its_newest_exposure_is_older_than_the_slack():
    quality = lists(slack_ms=1000)
    quality.update(column([5], np.int64), column([1]), column([1]), column([100], np.int64))
    quality.close_before(1100)
    quality.update(column([5], np.int64), column([2]), column([0]), column([300], np.int64))
    quality.close_before(1300)
    assert quality.summary()["requests"] == 0
    quality.close_before(1301)
    assert quality.summary() == {"requests": 1, "mrr": 0.5, "ndcg@10": pytest.approx(1 / math.log2(3))}
    assert len(quality.state()[1]["list_id"]) == 0


def test_equal_scores_in_a_request_are_as_good_as_chance_wherever_the_outcome_stands():
    for place in (0, 3):
        quality = lists()
        labels = np.zeros((3000, 4), np.float32)
        labels[:, place] = 1
        ids = np.repeat(np.random.default_rng(1).integers(1, 1 << 62, 3000), 4)
        quality.update(ids, np.zeros(12_000, np.float32), labels.ravel(), np.zeros(12_000, np.int64))
        quality.close_all()
        assert quality.summary()["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, abs=0.02)


def test_pending_requests_are_bounded_and_what_is_left_out_is_counted():
    quality = lists(max_pending_items=100)
    for step in range(50):
        ids = np.repeat(np.arange(1, 4) + 3 * step, 5)
        quality.update(ids, np.zeros(15, np.float32), np.ones(15, np.float32), np.full(15, step))
        assert len(quality.state()[1]["logits"]) <= 100
    quality.close_all()
    assert quality.summary()["requests"] + quality.n_left_out == 150
    assert quality.summary()["requests"] == 20


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 6), st.floats(-4, 4, width=16), st.booleans(), st.integers(0, 50)), max_size=60
    ),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    pause=st.integers(0, 60),
)
def test_lists_do_not_depend_on_batches_and_survive_a_restore(rows, cuts, pause):
    ids, logits, labels, times = (
        column([row[place] for row in rows], dtype)
        for place, dtype in enumerate((np.int64, np.float32, np.float32, np.int64))
    )
    whole, cut = lists(), lists()
    whole.update(ids, logits, labels, times)
    borders = sorted({min(one, len(rows)) for one in [0, *cuts, pause, len(rows)]})
    for start, end in itertools.pairwise(borders):
        if start == min(pause, len(rows)):
            resumed = lists()
            resumed.restore(*cut.state())
            cut = resumed
        part = slice(start, end)
        cut.update(ids[part], logits[part], labels[part], times[part])
    assert {*whole.state()[1]["list_id"].tolist()} == {*cut.state()[1]["list_id"].tolist()}
    whole.close_all()
    cut.close_all()
    assert whole.summary() == cut.summary()
    assert whole.state()[0] == cut.state()[0]


def test_a_state_whose_sizes_do_not_fit_is_refused():
    quality = lists()
    quality.update(column([5, 5], np.int64), column([1, 2]), column([1, 0]), column([0, 0], np.int64))
    state, arrays = quality.state()
    with pytest.raises(ValueError, match="3 items, but 2 logits"):
        lists().restore(state, {**arrays, "size": column([3], np.int64)})
    with pytest.raises(ValueError, match="n_requests"):
        lists().restore({}, arrays)
