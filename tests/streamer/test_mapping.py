"""Mapping files: every feature on a row, every mistake told with its file and path."""

from pathlib import Path

import pytest

from contracts.events import Event
from contracts.records import BadRecordError
from contracts.settings import SettingsError
from streamer.mapping import Mapping, load_mapping, ready_mappings

BASE = {"user_id": "u", "item_id": "i", "type": {"constant": "click"}, "time": {"column": "t", "unit": "ms"}}
ROW = {"u": "u1", "i": "i1", "t": 5}


def mapped(row: dict[str, object] | None = None, **more: object) -> list[Event]:
    return Mapping.model_validate({**BASE, **more}).events({**ROW, **(row or {})}, "log-0-3")


def one(row: dict[str, object] | None = None, **more: object) -> Event:
    [event] = mapped(row, **more)
    return event


def test_the_least_mapping_names_user_item_type_and_time() -> None:
    assert one() == Event(event_id="log-0-3", type="click", user_id="u1", item_id="i1", ts_ms=5)


@pytest.mark.parametrize(
    ("time", "found", "ts_ms"),
    [
        ({"unit": "s"}, "1511658000", 1_511_658_000_000),
        ({"unit": "s"}, "1511658000.25", 1_511_658_000_250),
        ({"unit": "s"}, 1_511_658_000.5, 1_511_658_000_500),
        ({"unit": "ms"}, 1_511_658_000_001, 1_511_658_000_001),
        ({"unit": "us"}, "1511658000000999", 1_511_658_000_000),
        ({"unit": "ns"}, 1_511_658_000_123_999_999, 1_511_658_000_123),
        ({"format": "iso"}, "2019-11-24 00:00:17.004101+00:00", 1_574_553_617_004),
        ({"format": "iso"}, "2019-11-24T00:00:17Z", 1_574_553_617_000),
        ({"format": "iso", "timezone": "Asia/Shanghai"}, "2019-11-24T08:00:17", 1_574_553_617_000),
        ({"format": "%Y-%m-%d %H:%M:%S UTC"}, "2019-10-01 00:00:00 UTC", 1_569_888_000_000),
        ({"format": "%d.%m.%Y %H:%M", "timezone": "Europe/Berlin"}, "01.07.2019 02:00", 1_561_939_200_000),
    ],
)
def test_time_is_read_in_its_unit_or_format(time: dict[str, str], found: object, ts_ms: int) -> None:
    assert one({"t": found}, time={"column": "t", **time}).ts_ms == ts_ms


@pytest.mark.parametrize("found", ["", None, "soon", True, [1], {"a": 1}, "nan", "inf", -5, 1e300])
def test_a_time_that_is_none_names_its_column_or_field(found: object) -> None:
    with pytest.raises(BadRecordError, match=r"`t`|ts_ms"):
        one({"t": found})


def test_types_are_translated_ignored_or_refused() -> None:
    table = {"type": "what", "types": {"pv": "content_view", "3": "purchase"}, "ignore": ["fav"]}
    assert one({"what": "pv"}, **table).type == "content_view"
    assert one({"what": 3}, **table).type == "purchase"
    assert mapped({"what": "fav"}, **table) == []
    with pytest.raises(BadRecordError, match=r"`what`: found 'return'; the mapping knows pv, 3, fav") as caught:
        mapped({"what": "return"}, **table)
    assert caught.value.reason == "unknown_type"


def test_without_a_table_the_types_of_the_log_are_ours() -> None:
    assert one({"what": "purchase"}, type="what").type == "purchase"


def test_a_dotted_path_reads_nested_json_and_a_column_of_that_name_goes_before() -> None:
    nested = {"meta": {"user": {"id": 12}}}
    assert one(nested, user_id="meta.user.id").user_id == 12
    assert one({**nested, "meta.user.id": "flat"}, user_id="meta.user.id").user_id == "flat"
    with pytest.raises(BadRecordError, match=r"`user_id`: column `meta.user.id` is missing"):
        one({"meta": {"user": 3}}, user_id="meta.user.id")


def test_a_user_can_be_a_tuple_of_columns() -> None:
    assert one({"a": "x", "b": None, "c": 3}, user_id=["a", "b", "c"]).user_id == "x||3"
    with pytest.raises(BadRecordError, match="missing"):
        one({"a": "", "b": None}, user_id=["a", "b"])


def test_a_column_can_go_by_several_names() -> None:
    assert one({"userId": "x"}, user_id={"any": ["user_id", "userId"]}).user_id == "x"


def test_an_attribute_can_be_the_sum_of_all_columns_that_fit_a_pattern() -> None:
    user = {"clicks": {"sum": "clicks_*"}}
    assert one({"clicks_1": "1.5", "clicks_2": "", "clicks_3": 2, "click": "9"}, user=user).user == {"clicks": 3.5}
    assert one({"clicks_1": ""}, user=user).user == {}, "none is given"
    with pytest.raises(BadRecordError, match=r"clicks_.*found 'many', expected a number"):
        one({"clicks_1": "many"}, user=user)


def test_a_number_that_went_through_a_float_column_is_whole_again() -> None:
    assert one({"u": 12.0}).user_id == 12
    with pytest.raises(BadRecordError, match=r"\$\.user_id"):
        one({"u": 12.5})


def test_attributes_are_taken_over_typed_and_left_out_where_empty() -> None:
    event = one(
        {"price": "12.50", "brand": "", "cat": 7, "tags": ["a", "b"], "age": "41", "size": "nan"},
        item={
            "price": {"column": "price", "kind": "numeric"},
            "brand": "brand",
            "category": {"column": "cat", "kind": "text"},
            "tags": "tags",
            "size": {"column": "size", "kind": "numeric"},
            "shop": {"constant": "main"},
        },
        user={"age": "age"},
        context={"nothing": "not_there"},
    )
    assert event.item == {"price": 12.5, "category": "7", "tags": ["a", "b"], "shop": "main"}
    assert event.user == {"age": "41"}
    assert event.context == {}


def test_a_number_that_is_none_or_not_finite_is_refused_with_its_column() -> None:
    numeric = {"item": {"price": {"column": "price", "kind": "numeric"}}}
    for found, reason in (("cheap", "mapping"), ([1], "mapping"), ("1e999", "non_finite")):
        with pytest.raises(BadRecordError, match="`price`") as caught:
            one({"price": found}, **numeric)
        assert caught.value.reason == reason
    with pytest.raises(BadRecordError, match=r"\$\.item"):
        one({"price": {"amount": 3}}, item={"price": "price"})


def test_ids_and_value_of_the_log_are_kept() -> None:
    event = one({"e": "x1", "r": 77, "paid": "3.5"}, event_id="e", request_id="r", value="paid")
    assert (event.event_id, event.request_id, event.value) == ("x1", "77", 3.5)
    assert one({"paid": ""}, value="paid").value is None


def test_a_flag_makes_a_second_event_of_the_same_request() -> None:
    flags = [{"column": "clicked", "values": ["1", "true"], "type": "click", "delay": "2s"}]
    view, click = mapped({"clicked": "1"}, type={"constant": "content_view"}, flags=flags)
    assert (view.type, click.type) == ("content_view", "click")
    assert view.request_id == click.request_id == "log-0-3"
    assert click.ts_ms == view.ts_ms + 2000
    assert click.event_id != view.event_id
    for unset in ("0", "", None, 0, False):
        assert len(mapped({"clicked": unset}, flags=flags)) == 1
    for is_set in (1, 1.0, True):
        assert len(mapped({"clicked": is_set}, flags=flags)) == 2


def test_a_flag_can_be_a_least_number() -> None:
    flags = [{"column": "stars", "min": 4, "type": "like"}]
    assert [len(mapped({"stars": stars}, flags=flags)) for stars in ("3.5", "4", 5, "", None)] == [1, 2, 2, 1, 1]
    with pytest.raises(BadRecordError, match="`stars`"):
        mapped({"stars": "many"}, flags=flags)


def written(tmp_path: Path, content: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(content, encoding="utf-8")
    return str(path)


MINE = """
user_id = "u"
item_id = "i"
type = { constant = "click" }
time = { column = "t", unit = "s" }
"""


def test_a_mapping_is_read_from_a_file(tmp_path: Path) -> None:
    assert load_mapping(written(tmp_path, MINE)).events({"u": 1, "i": 2, "t": 3})[0].ts_ms == 3000


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("user_id = ", "not TOML"),
        ('user_id = "u"', "item_id: Field required"),
        (MINE + "usr = 1", "usr: Extra inputs are not permitted (found 1)"),
        (MINE.replace('unit = "s"', 'unit = "minutes"'), "time.unit: Input should be 's', 'ms', 'us' or 'ns'"),
        (MINE.replace(', unit = "s"', ""), "time: give `unit`"),
        (MINE.replace('unit = "s"', 'format = "iso", timezone = "Mars"'), "time.timezone: expected a zone of the IANA"),
        (MINE.replace('{ constant = "click" }', "{}"), "type: name exactly one of `column`"),
        (MINE + 'format = "csv"', "mapping: `columns` go with"),
        (MINE + '[[flags]]\ncolumn = "c"\ntype = "click"', "flags.0: give either `values`"),
        (MINE + '[settings]\nmode = "explicit"', "settings: mode: Input should be"),
        (MINE + '[settings]\ntasks = [{ name = "x", window = "5 weeks" }]', "settings: tasks.0.window: a duration is"),
    ],
)
def test_a_mistake_in_a_mapping_is_told_with_file_and_path(tmp_path: Path, content: str, told: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(SettingsError) as caught:
        load_mapping(path)
    assert f"{path}: " in str(caught.value)
    assert told in str(caught.value)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_mapping(written(tmp_path, MINE + 'a = 1\nb = 2\nformat = "xml"'))
    assert len(str(caught.value).splitlines()) == 3


def test_an_unknown_mapping_is_answered_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match="taobao"):
        load_mapping("tabao")
    assert ready_mappings() == ["movielens", "open_bandit", "rees46", "retailrocket", "taobao"]
