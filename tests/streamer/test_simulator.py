"""The shop: the same seed, the same events; and what it says of its probabilities is true."""

from collections import Counter
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from pydantic import ValidationError

from contracts.events import Event
from contracts.records import Record
from contracts.settings import HOUR, MINUTE, Settings
from streamer.decode import EventDecoder
from streamer.simulator import START_MS, ShopSimulator, SimulatorSettings


def simulate(**settings: object) -> list[Event]:
    return list(ShopSimulator(SimulatorSettings.model_validate(settings)).events())


@pytest.fixture(scope="module")
def hours() -> list[Event]:
    """Six hours with short windows, so that all labels but the last hours' are there."""
    return simulate(
        seed=1, duration_ms=6 * HOUR, rate=10.0, click_window_ms=10 * MINUTE, purchase_window_ms=HOUR, n_items=1000
    )


def labelled(events: list[Event], type_: str, until_ms: int) -> tuple[np.ndarray, np.ndarray]:
    """True probability and label of every exposure before ``until_ms``."""
    outcomes = {(event.request_id, event.item_id) for event in events if event.type == type_}
    views = [event for event in events if event.type == "content_view" and event.ts_ms < until_ms]
    truth = np.array([event.truth[type_] for event in views if event.truth])
    return truth, np.array([(view.request_id, view.item_id) in outcomes for view in views])


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    n_positive = labels.sum()
    return float((ranks[labels].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * (len(labels) - n_positive)))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = (msgspec.json.encode(simulate(seed=seed, events=3000)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    assert simulate(events=4000)[:2500] == simulate(events=2500)


def test_events_are_in_order_of_time_with_ids_of_their_own(hours: list[Event]) -> None:
    assert all(one.ts_ms <= two.ts_ms for one, two in pairwise(hours))
    assert hours[0].ts_ms >= START_MS
    assert hours[-1].ts_ms < START_MS + 6 * HOUR
    assert len({event.event_id for event in hours}) == len(hours)


def test_every_outcome_follows_its_own_exposure_within_its_window(hours: list[Event]) -> None:
    views = {(event.request_id, event.item_id): event for event in hours if event.type == "content_view"}
    clicks = {(event.request_id, event.item_id): event for event in hours if event.type == "click"}
    for event in hours:
        if event.type != "content_view":
            view = views[event.request_id, event.item_id]
            assert event.user_id == view.user_id
            delay_ms = event.ts_ms - view.ts_ms
            assert 0 < delay_ms < (10 * MINUTE if event.type == "click" else HOUR)
        if event.type == "purchase":
            assert clicks[event.request_id, event.item_id].ts_ms < event.ts_ms
            assert event.value == event.item["price"]


def test_delays_are_skewed(hours: list[Event]) -> None:
    views = {(event.request_id, event.item_id): event.ts_ms for event in hours if event.type == "content_view"}
    delays = np.array(
        [event.ts_ms - views[event.request_id, event.item_id] for event in hours if event.type == "click"]
    )
    assert 10_000 < np.median(delays) < 20_000
    assert delays.mean() > 1.3 * np.median(delays)


@pytest.mark.parametrize("type_", ["click", "purchase"])
def test_the_stated_probabilities_are_those_of_the_labels(hours: list[Event], type_: str) -> None:
    truth, label = labelled(hours, type_, START_MS + 5 * HOUR)
    error = np.sqrt((truth * (1 - truth)).sum())
    assert abs(label.sum() - truth.sum()) < 4 * error
    # Not only on the whole: in every fifth of the exposures, ordered by probability.
    for part in np.array_split(np.argsort(truth), 5):
        spread = np.sqrt((truth[part] * (1 - truth[part])).sum())
        assert abs(label[part].sum() - truth[part].sum()) < 4.5 * spread


def test_the_rates_are_about_the_wanted_ones(hours: list[Event]) -> None:
    click, _ = labelled(hours, "click", START_MS + 5 * HOUR)
    purchase, _ = labelled(hours, "purchase", START_MS + 5 * HOUR)
    assert click.mean() == pytest.approx(0.06, rel=0.3)
    assert purchase.mean() == pytest.approx(0.06 * 0.13, rel=0.4)
    per_second = len(hours) / (6 * 3600)
    assert per_second == pytest.approx(10, rel=0.1)


def test_who_knows_the_truth_ranks_well_but_not_perfectly(hours: list[Event]) -> None:
    assert 0.74 < auc(*labelled(hours, "click", START_MS + 5 * HOUR)) < 0.84


def test_lists_hold_different_items_and_the_first_place_is_clicked_most(hours: list[Event]) -> None:
    views = [event for event in hours if event.type == "content_view"]
    lists: dict[str | None, list[Event]] = {}
    for view in views:
        lists.setdefault(view.request_id, []).append(view)
    for shown in list(lists.values())[:500]:
        assert len({view.item_id for view in shown}) == len(shown)
        assert [view.context["position"] for view in shown] == list(range(1, len(shown) + 1))
    by_place: dict[object, list[float]] = {}
    for view in views:
        assert view.truth is not None
        by_place.setdefault(view.context["position"], []).append(view.truth["click"])
    assert np.mean(by_place[1]) > 1.5 * np.mean(by_place[6])


def test_new_items_and_new_users_keep_coming(hours: list[Event]) -> None:
    half = len(hours) // 2
    early, late = hours[:half], hours[half:]
    known = {event.item_id for event in early}
    n_items_ever = max(int(str(event.item_id)[1:]) for event in hours)
    assert n_items_ever > 1000
    assert {event.item_id for event in late} - known
    assert {event.user_id for event in late} - {event.user_id for event in early}


def test_users_come_back(hours: list[Event]) -> None:
    visits = Counter(event.user_id for event in {event.request_id: event for event in hours}.values())
    assert np.median(list(visits.values())) >= 3


def test_what_a_user_clicked_tells_what_the_user_will_click(hours: list[Event]) -> None:
    """The chance of a click is higher in the category of the user's last click: history is worth reading."""
    last: dict[object, object] = {}
    same, other = [], []
    for event in hours:
        if event.type == "click":
            last[event.user_id] = event.item["category"]
        elif event.truth and event.user_id in last:
            (same if last[event.user_id] == event.item["category"] else other).append(event.truth["click"])
    assert np.mean(same) > 1.5 * np.mean(other)


def test_a_change_of_taste_shows_only_when_it_comes() -> None:
    plain, changed = simulate(events=9_000), simulate(events=9_000, change_at_ms=25_000)
    before = [event for event in plain if event.ts_ms < START_MS + 15_000]
    assert changed[: len(before)] == before
    assert changed != plain


def test_after_a_change_of_taste_old_clicks_mislead() -> None:
    """How much likelier a click is in a user's favourite category of before the change."""

    def advantage(events: list[Event]) -> float:
        favourites: dict[object, Counter[object]] = {}
        for event in events:
            if event.type == "click" and event.ts_ms < START_MS + HOUR:
                favourites.setdefault(event.user_id, Counter())[event.item["category"]] += 1
        liked, rest = [], []
        for event in events:
            if event.truth and event.ts_ms >= START_MS + HOUR and event.user_id in favourites:
                favourite = favourites[event.user_id].most_common(1)[0][0]
                (liked if event.item["category"] == favourite else rest).append(event.truth["click"])
        return float(np.mean(liked) / np.mean(rest))

    shop = {"duration_ms": 90 * MINUTE, "rate": 20.0, "n_users": 1000, "n_items": 500}
    assert advantage(simulate(**shop)) > 1.3 * advantage(simulate(**shop, change_at_ms=HOUR))


def test_every_event_is_a_valid_canonical_event() -> None:
    decoder = EventDecoder(Settings(), None, lambda: START_MS + HOUR)
    for event in simulate(events=5000):
        assert decoder.decode(Record("t", 0, 0, None, msgspec.json.encode(event))) == [event]


@pytest.mark.parametrize(
    "odd",
    [
        {"rate": 0.2, "n_users": 400, "n_items": 100, "list_size": 20},
        {"rate": 50_000.0, "list_size": 1},
        {"click_rate": 0.9, "purchase_rate": 0.9, "new_users": 1.0, "new_items": 100.0},
    ],
)
def test_odd_shops_work_too(odd: dict[str, object]) -> None:
    assert len(simulate(events=2000, **odd)) == 2000


def test_no_events_are_no_events() -> None:
    assert simulate(events=0) == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rate": 0}, "rate"),
        ({"n_items": 5}, "n_items"),
        ({"purchase_window_ms": 60_000}, "purchase follows its click"),
    ],
)
def test_a_shop_that_cannot_be_is_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        SimulatorSettings.model_validate(wrong)
