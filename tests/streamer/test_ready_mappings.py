"""The mappings that ship, on rows as their logs have them, and on the logs themselves where they are at hand."""

import os
from collections import Counter
from pathlib import Path

import pytest

from contracts.events import Event
from contracts.records import BadRecordError
from contracts.settings import load_settings
from streamer.decode import EventDecoder
from streamer.mapping import load_mapping, ready_mappings
from streamer.sources.file import FileSource

DATA = Path(os.environ.get("ANABRANCH_DATA", Path(__file__).parents[3] / "shared" / "data"))
NOW_MS = 1_767_225_600_000


def read(name: str, path: Path) -> tuple[list[Event], Counter[str]]:
    mapping = load_mapping(name)
    decoder = EventDecoder(load_settings(None, mapping.settings), mapping, lambda: NOW_MS)
    events: list[Event] = []
    rejected: Counter[str] = Counter()
    with FileSource(path) as source:
        while not source.ended:
            for record in source.poll(0):
                try:
                    events += decoder.decode(record)
                except BadRecordError as error:
                    rejected[error.detail] += 1
    return events, rejected


def log(path: str) -> Path:
    if not (DATA / path).exists():
        pytest.skip(f"{path} is not here (ANABRANCH_DATA names the folder)")
    return DATA / path


@pytest.mark.parametrize("name", ready_mappings())
def test_a_ready_mapping_makes_only_events_that_its_settings_know(name: str) -> None:
    mapping = load_mapping(name)
    settings = load_settings(None, mapping.settings)
    made = {*mapping.types.values(), *(flag.type for flag in mapping.flags)} | {mapping.type.constant} - {None}
    assert made == set(settings.event_types)
    for field in settings.fields:
        assert field.key in getattr(mapping, field.owner)


def test_taobao_is_read_whole() -> None:
    events, rejected = read("taobao", log("taobao/UserBehavior.csv.gz"))
    assert not rejected
    assert Counter(event.type for event in events) == {"content_view": 98_361, "click": 6_063, "purchase": 2_493}
    assert events[0] == Event(
        event_id="UserBehavior.csv.gz-0-0",
        type="content_view",
        user_id="543462",
        item_id="1715",
        ts_ms=1_511_658_000_000,
        item={"category": "1464116"},
    )
    assert len({event.event_id for event in events}) == len(events)


def test_taobao_is_read_from_a_topic_of_bare_lines() -> None:
    mapping = load_mapping("taobao")
    row = dict(zip(mapping.columns, ["1", "2268318", "2520377", "pv", "1511544070"], strict=True))
    [event] = mapping.events(row)
    assert (event.type, event.ts_ms) == ("content_view", 1_511_544_070_000)


@pytest.mark.parametrize(
    ("path", "n_clicks"), [("bts/all", 42), ("bts/men", 69), ("bts/women", 46), ("random/all", 38), ("random/men", 46)]
)
def test_open_bandit_impressions_have_their_clicks(path: str, n_clicks: int) -> None:
    events, rejected = read("open_bandit", log(f"open_bandit/{path}.csv.gz"))
    assert not rejected
    assert Counter(event.type for event in events) == {"content_view": 10_000, "click": n_clicks}
    views = {event.request_id: event for event in events if event.type == "content_view"}
    assert len(views) == 10_000
    for click in (event for event in events if event.type == "click"):
        view = views[click.request_id]
        assert (view.user_id, view.item_id, view.ts_ms) == (click.user_id, click.item_id, click.ts_ms)
    assert {event.context["position"] for event in events} == {"1", "2", "3"}


def test_retailrocket_rows_are_read() -> None:
    mapping = load_mapping("retailrocket")
    names = ("timestamp", "visitorid", "event", "itemid", "transactionid")
    rows = ("1433221332117,257597,view,355908,", "1433222276276,599528,transaction,356475,4000")
    view, purchase = (mapping.events(dict(zip(names, row.split(","), strict=True)))[0] for row in rows)
    assert (view.type, view.user_id, view.item_id, view.ts_ms) == (
        "content_view",
        "257597",
        "355908",
        1_433_221_332_117,
    )
    assert purchase.type == "purchase"


def test_rees46_rows_are_read_even_with_holes() -> None:
    mapping = load_mapping("rees46")
    names = [
        "event_time",
        "event_type",
        "product_id",
        "category_id",
        "category_code",
        "brand",
        "price",
        "user_id",
        "user_session",
    ]
    full = "2019-10-01 00:00:01 UTC,cart,3900821,2053013552326770905,appliances.iron,aqua,33.20,554748717,9333"
    holes = "2019-10-01 00:00:00 UTC,view,44600062,2103807459595387724,,,35.79,541312140,72d7"
    [cart] = mapping.events(dict(zip(names, full.split(","), strict=True)))
    [view] = mapping.events(dict(zip(names, holes.split(","), strict=True)))
    assert (cart.type, cart.ts_ms) == ("click", 1_569_888_001_000)
    assert cart.item == {
        "category": "2053013552326770905",
        "category_code": "appliances.iron",
        "brand": "aqua",
        "price": 33.2,
    }
    assert view.item == {"category": "2103807459595387724", "price": 35.79}
    assert mapping.events({**dict(zip(names, full.split(","), strict=True)), "event_type": "remove_from_cart"}) == []


@pytest.mark.parametrize(
    "names",
    [
        ("userId", "movieId", "rating", "timestamp"),
        ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
    ],
)
def test_a_movielens_rating_is_a_view_and_from_four_stars_on_a_like(names: tuple[str, ...]) -> None:
    mapping = load_mapping("movielens")
    [low] = mapping.events(dict(zip(names, ("196", "242", "3", "881250949"), strict=True)), "a")
    view, like = mapping.events(dict(zip(names, ("186", "302", "4.0", "891717742"), strict=True)), "b")
    assert (low.type, low.ts_ms) == ("content_view", 881_250_949_000)
    assert (view.type, like.type) == ("content_view", "like")
    assert view.event_id != like.event_id
