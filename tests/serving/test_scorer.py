"""The scorer: what it gives is what the model says, and what the learner would have said."""

from collections import Counter
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from contracts.batch import Batch
from contracts.scoring import RankRequest, ScoreRequest
from features.encoder import Encoder
from features.hashing import hash_id
from features.profiles import load_profiles, new_profiles
from features.schema import FeatureSchema
from learner.models._frozen import FrozenModel
from learner.snapshot import SnapshotStore
from serving.scorer import GROUPS, Scorer, ScoringError

TASKS = ("content_view", "click", "purchase")
N_LEARNED = 1200


@pytest.fixture(scope="session")
def snapshot(learned):
    return SnapshotStore(learned).load(3, groups=GROUPS, states=())


@pytest.fixture(scope="session")
def scorer(settings, snapshot):
    return Scorer(settings, snapshot, settings.serve.max_items).warmed()


def request(kind=ScoreRequest, **fields):
    return msgspec.convert(fields, kind)


def probabilities(reply):
    return np.array([[item.probabilities[task] for task in TASKS] for item in reply.items])


def seen(events):
    """Users and items of what was learned."""
    learned = events[:N_LEARNED]
    return [event.user_id for event in learned], list(dict.fromkeys(event.item_id for event in learned))


def test_probabilities_are_those_of_the_frozen_model_on_the_encoded_candidates(
    settings, snapshot, scorer, events, now_ms
) -> None:
    users, items = seen(events)
    items = [*items[:6], "never-seen"]
    reply = scorer.score(
        request(user_id=users[-1], items=items, context={"device": "phone", "position": 2}), "r", now_ms
    )
    schema = FeatureSchema.of(settings)
    profiles = new_profiles(settings.features, schema, settings.negatives.uniform_share, settings.seed)
    load_profiles(profiles, snapshot.groups["profiles"])
    n = len(items)
    rows, known_user, known = Encoder(schema, profiles).encode_candidates(
        hash_id("user_id", users[-1]),
        np.array([hash_id("item_id", item) for item in items]),
        now_ms,
        np.zeros(1, np.int64),
        np.zeros(0, np.float32),
        np.array([hash_id("context.device", "phone")]),
        np.array([2.0], np.float32),
        np.zeros((n, schema.item.n_ids), np.int64),
        np.full((n, 1), np.nan, np.float32),
    )
    expected = FrozenModel(settings, schema.layout, snapshot.groups).probabilities(rows)
    np.testing.assert_allclose(probabilities(reply), expected, rtol=1e-6)
    assert known_user
    assert [item.known for item in reply.items] == known.tolist() == [True] * 6 + [False]
    assert [item.item_id for item in reply.items] == items
    assert ((expected > 0) & (expected < 1)).all()
    assert len(np.unique(expected[:, 1])) > 3


def test_the_score_is_what_the_learner_gives_the_exposure_before_it_learns(
    settings, learned, scorer, events, make_assembly
) -> None:
    # The scorer's precision; what the learner rounds to bfloat16 where the processor can is another question.
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"precision": "float32"})})
    newest = SnapshotStore(learned).load(3)
    fresh = [event for event in events[N_LEARNED:] if event.type == "content_view"]
    users = {event.user_id for event in events[:N_LEARNED]}
    chosen = [event for event in fresh if event.user_id in users][:3]
    chosen += [event for event in fresh if event.user_id not in users][:1]
    chosen.append(msgspec.structs.replace(fresh[0], user_id="new", item_id="new", event_id="new", item={}, user={}))
    for event in chosen:
        assembly = make_assembly(settings, [event], N_LEARNED, None, newest)
        [batch] = [piece for piece in assembly.feed.stream() if isinstance(piece, Batch)]
        assembly.trainer.step(batch)
        [slot] = batch.slot[batch.slot >= 0].tolist()
        logits = assembly.trainer.save()[0]["examples"]["logits"][slot]
        reply = scorer.score(
            request(
                user_id=event.user_id,
                items=[{"item_id": event.item_id, "item": event.item}],
                user=event.user,
                context=event.context,
                ts_ms=event.ts_ms,
            ),
            "r",
            0,
        )
        # `content_view` is learned against sampled items: its served score is relative to one of them instead.
        np.testing.assert_allclose(probabilities(reply)[0, 1:], 1 / (1 + np.exp(-logits[1:])), rtol=1e-4)


def test_the_reply_names_version_age_and_request(scorer, events, now_ms) -> None:
    reply = scorer.score(request(user_id="u", items=["a"]), "request-7", now_ms)
    assert (reply.request_id, reply.model_version, reply.model_age_s) == ("request-7", 3, 10.0)


@pytest.mark.parametrize(
    ("user", "item", "level"),
    [
        ("known", "known", "personalised"),
        ("known", "new", "personalised"),
        ("new", "known", "content"),
        ("new", "new", "popular"),
    ],
)
def test_the_level_of_fallback_says_what_was_known(scorer, events, now_ms, user, item, level) -> None:
    users, items = seen(events)
    chosen = {"user_id": users[-1] if user == "known" else "nobody", "items": [items[0] if item == "known" else "no"]}
    for _ in range(2):  # asking makes nobody known
        assert scorer.score(request(**chosen), "r", now_ms).fallback == level


def test_a_user_never_seen_gets_scores_by_popularity_and_by_content(scorer, events, now_ms) -> None:
    """Whether content is worth it, `python -m benchmarks.quality.cold` measures."""
    views = Counter(event.item_id for event in events[:N_LEARNED] if event.type == "content_view")
    items = [item for item, _ in views.most_common()]
    categories = sorted({event.item["category"] for event in events[:N_LEARNED]})
    new = [{"item_id": "new", "item": {"category": name}} for name in categories]

    def viewed(chosen):
        return probabilities(scorer.score(request(user_id="nobody", items=chosen), "r", now_ms))[:, 0]

    assert np.median(viewed(items[:20])) > np.median(viewed(items[-20:])) + 0.05
    assert len(np.unique(viewed(new))) == len(new) > 5


def test_no_items_give_no_scores(scorer, now_ms) -> None:
    assert scorer.score(request(user_id="u", items=[]), "r", now_ms).items == []
    assert scorer.rank(request(RankRequest, user_id="u", items=[], weights={"click": 1}), "r", now_ms).items == []


def test_items_are_scored_each_by_itself(scorer, events, now_ms) -> None:
    users, items = seen(events)
    together = probabilities(scorer.score(request(user_id=users[0], items=items[:20]), "r", now_ms))
    alone = [scorer.score(request(user_id=users[0], items=[item]), "r", now_ms) for item in items[:20]]
    np.testing.assert_allclose(together, np.concatenate([probabilities(reply) for reply in alone]), rtol=1e-4)


def test_an_item_given_with_attributes_is_scored_by_them(scorer, events, now_ms) -> None:
    users, items = seen(events)
    told = next(event for event in reversed(events[:N_LEARNED]) if event.item_id == items[0]).item
    other = next(event.item for event in events[:N_LEARNED] if event.item["category"] != told["category"])

    def score(item):
        return probabilities(scorer.score(request(user_id=users[0], items=[item]), "r", now_ms))

    plain = score(items[0])
    np.testing.assert_array_equal(score({"item_id": items[0]}), plain)
    np.testing.assert_array_equal(score({"item_id": items[0], "item": told}), plain)
    assert (score({"item_id": items[0], "item": {"category": other["category"]}}) != plain).any()
    assert (score({"item_id": items[0], "item": {"price": told["price"] * 5}}) != plain).any()
    assert (score({"item_id": "new", "item": told}) != score("new")).any()


def test_an_id_is_the_same_as_a_number_and_as_text(scorer, now_ms) -> None:
    as_number = scorer.score(request(user_id=7, items=[8, 9]), "r", now_ms)
    as_text = scorer.score(request(user_id="7", items=["8", "9"]), "r", now_ms)
    np.testing.assert_array_equal(probabilities(as_number), probabilities(as_text))
    assert [item.item_id for item in as_number.items] == [8, 9]


def test_the_moment_to_score_for_counts(scorer, events, now_ms) -> None:
    users, items = seen(events)
    plain = probabilities(scorer.score(request(user_id=users[-1], items=items[:5]), "r", now_ms))
    same = probabilities(scorer.score(request(user_id=users[-1], items=items[:5], ts_ms=now_ms), "r", 0))
    later = probabilities(scorer.score(request(user_id=users[-1], items=items[:5], ts_ms=now_ms + 86_400_000), "r", 0))
    np.testing.assert_array_equal(plain, same)
    assert (plain != later).any()


@pytest.mark.parametrize("weights", [{"click": 1, "purchase": 20.5}, {"click": -3}, {"content_view": 1, "click": -1}])
def test_ranking_orders_by_the_weighted_sum(scorer, events, now_ms, weights) -> None:
    users, items = seen(events)
    chosen = {"user_id": users[-1], "items": items[:30]}
    scored = scorer.score(request(**chosen), "r", now_ms)
    value = {
        item.item_id: sum(weights.get(task, 0) * item.probabilities[task] for task in TASKS) for item in scored.items
    }
    ranked = scorer.rank(request(RankRequest, **chosen, weights=weights), "r", now_ms).items
    assert {item.item_id for item in ranked} == set(value)
    assert [item.value for item in ranked] == pytest.approx([value[item.item_id] for item in ranked], rel=1e-6)
    assert all(one.value >= other.value for one, other in pairwise(ranked))
    of_item = {item.item_id: (item.probabilities, item.known) for item in scored.items}
    assert all(of_item[item.item_id] == (item.probabilities, item.known) for item in ranked)
    for top in (1, 7, 30, 1000):
        best = scorer.rank(request(RankRequest, **chosen, weights=weights, top=top), "r", now_ms).items
        assert best == ranked[:top]


def test_ties_stay_in_the_order_of_the_request(scorer, events, now_ms) -> None:
    _, items = seen(events)
    chosen = request(RankRequest, user_id="u", items=items[:9], weights={"click": 0})
    assert [item.item_id for item in scorer.rank(chosen, "r", now_ms).items] == items[:9]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"clik": 1.0, "click": 1.0}, "found `clik`, expected some of content_view, click, purchase"),
        ({}, "found none, expected some of content_view"),
        ({"click": float("inf")}, "finite number; found inf for `click`"),
        ({"click": 1.7e308, "purchase": -1.7e308}, "within a float's range"),
    ],
)
def test_weights_that_make_no_sense_are_refused(scorer, now_ms, weights, message) -> None:
    with pytest.raises(ScoringError, match=message):
        scorer.rank(request(RankRequest, user_id="u", items=["a"], weights=weights), "r", now_ms)


def test_too_many_items_are_refused(scorer, now_ms) -> None:
    scorer.score(request(user_id="u", items=["a"] * 50), "r", now_ms)
    with pytest.raises(ScoringError, match=r"at most 50 items; found 51\. Split it, or raise serve.max_items"):
        scorer.score(request(user_id="u", items=["a"] * 51), "r", now_ms)
