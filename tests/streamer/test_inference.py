"""Fields out of a log's first rows."""

import tomllib

from contracts.events import Attributes, Event
from contracts.settings import Settings
from streamer.inference import describe, infer_fields


def events(*items: Attributes) -> list[Event]:
    return [
        Event(event_id=n, type="click", user_id=1, item_id=2, ts_ms=n, item=item) for n, item in enumerate(items)
    ]  # fmt: skip


def kinds(*items: Attributes, limit: int = 1000) -> dict[str, str]:
    return {field.source: field.kind for field in infer_fields(events(*items), limit)}


def test_text_and_flags_are_categorical() -> None:
    assert kinds({"brand": "a", "new": True}, {"brand": "b", "new": False}) == {
        "item.brand": "categorical",
        "item.new": "categorical",
    }


def test_few_whole_numbers_are_labels_and_many_are_a_quantity() -> None:
    assert kinds(*({"x": n % 20} for n in range(100))) == {"item.x": "categorical"}
    assert kinds(*({"x": n % 21} for n in range(100))) == {"item.x": "numeric"}


def test_one_broken_number_makes_a_quantity_and_one_word_a_label() -> None:
    assert kinds({"x": 1}, {"x": 2.5}) == {"item.x": "numeric"}
    assert kinds({"x": 1.5}, {"x": 2.5}, {"x": "unknown"}) == {"item.x": "categorical"}


def test_constants_missing_values_and_dotted_keys_are_left_out() -> None:
    assert kinds({"c": 1, "l": [1], "n": None, "a.b": "x"}, {"c": 1, "l": [1], "n": None, "a.b": "y"}) == {}


def test_a_list_is_several_labels() -> None:
    assert kinds({"x": [1, 2]}, {"x": 3}) == {"item.x": "multi"}


def test_only_the_first_events_are_looked_at() -> None:
    assert kinds({"x": "a"}, {"x": "a"}, {"x": "b"}, limit=2) == {}


def test_owners_are_told_apart_and_the_number_of_fields_is_bounded() -> None:
    event = events({f"k{n}": "a" for n in range(100)})[0]
    other = events({f"k{n}": "b" for n in range(100)})[0]
    assert len(infer_fields([event, other], 10)) == 64
    one = Event(event_id=1, type="click", user_id=1, item_id=2, ts_ms=1, user={"x": "a"}, context={"x": 1.5})
    two = Event(event_id=1, type="click", user_id=1, item_id=2, ts_ms=1, user={"x": "b"}, context={"x": 2})
    assert [(f.source, f.kind) for f in infer_fields([one, two])] == [
        ("user.x", "categorical"),
        ("context.x", "numeric"),
    ]


def test_the_description_is_toml_that_the_settings_take() -> None:
    fields = infer_fields(events({"price": 1.5, 'odd "key"\\': "a"}, {"price": 2.5, 'odd "key"\\': "b"}))
    assert Settings.model_validate(tomllib.loads(describe(fields))).fields == fields
