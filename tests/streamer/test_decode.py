"""Bytes in, events or a bad record out; nothing else, whatever the bytes."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from contracts.events import MAX_ID_LENGTH, Event
from contracts.records import BadRecordError, Record
from contracts.settings import FieldSpec, Settings, load_settings
from streamer.decode import EventDecoder
from streamer.mapping import Mapping

NOW_MS = 1_700_000_000_000
GOOD = {"event_id": "e1", "type": "click", "user_id": "u1", "item_id": 7, "ts_ms": NOW_MS}
REASONS = {"not_json", "missing_field", "wrong_type", "too_long", "non_finite", "future", "unknown_type", "mapping"}


DECLARED = Settings(fields=tuple(FieldSpec(source=f"item.{key}") for key in ("a", "text", "price")))


def decoder(settings: Settings | None = None, mapping: Mapping | None = None) -> EventDecoder:
    return EventDecoder(settings or Settings(), mapping, lambda: NOW_MS)


def record(value: bytes, offset: int = 0) -> Record:
    return Record("events", 2, offset, b"key", value)


def rejected(value: bytes, settings: Settings | None = None) -> BadRecordError:
    with pytest.raises(BadRecordError) as caught:
        decoder(settings).decode(record(value))
    return caught.value


def changed(**fields: object) -> bytes:
    return msgspec.json.encode({**GOOD, **fields})


def test_a_canonical_event_is_read_field_by_field() -> None:
    value = changed(
        request_id="r",
        context={"position": 1, "page": None},
        item={"tags": ["a", 2]},
        user={"vip": True},
        value=2,
        x=[{}],
    )
    assert decoder().decode(record(value)) == [
        Event(
            event_id="e1",
            type="click",
            user_id="u1",
            item_id=7,
            ts_ms=NOW_MS,
            request_id="r",
            context={"position": 1, "page": None},
            item={"tags": ["a", 2]},
            user={"vip": True},
            value=2.0,
        )
    ]


@pytest.mark.parametrize(
    ("value", "reason", "told"),
    [
        (b"", "not_json", "empty"),
        (b"\x00\xff\xfe", "not_json", "JSON"),
        (b"{", "not_json", "truncated"),
        (b'{"event_id": "\xff"}', "not_json", "utf-8"),
        (b'{"event_id": NaN}', "not_json", "malformed"),
        (b'{"event_id":"\\ud800"}', "not_json", "JSON"),
        (b"[1]", "wrong_type", "object"),
        (b'{"x":' + b"[" * 100_000, "not_json", "recursion"),
        (b"{}", "missing_field", "event_id"),
        (changed(user_id=""), "missing_field", "$.user_id"),
        (changed(user_id=None), "wrong_type", "$.user_id"),
        (changed(user_id=True), "wrong_type", "$.user_id"),
        (changed(item_id=1.5), "wrong_type", "$.item_id"),
        (changed(item={"a": {"b": 1}}), "wrong_type", "$.item"),
        (changed(ts_ms=-1), "wrong_type", "$.ts_ms"),
        (changed(ts_ms="2024-01-01"), "wrong_type", "$.ts_ms"),
        (changed(item_id="x" * (MAX_ID_LENGTH + 1)), "too_long", "$.item_id"),
        (changed(item={"text": "x" * 5000}), "too_long", "$.item"),
        (b'{"event_id":1' + b"0" * 5000 + b"}", "too_long", "$.event_id"),
        (changed()[:-1] + b',"value":1e999}', "non_finite", "$.value"),
        (changed()[:-1] + b',"item":{"price":1e999}}', "non_finite", "$.item"),
        (changed()[:-1] + b',"item":{"price":1' + b"0" * 400 + b"}}", "non_finite", "$.item.price"),
        (changed(ts_ms=NOW_MS + 600_001), "future", "events.max_future"),
        (changed(ts_ms=NOW_MS * 1_000_000), "future", "milliseconds"),
        (changed(type="wishlist"), "unknown_type", "[[tasks]]"),
    ],
)
def test_a_bad_record_has_a_reason_and_says_where(value: bytes, reason: str, told: str) -> None:
    error = rejected(value, DECLARED)
    assert (error.reason, told in error.detail) == (reason, True), error.detail


@pytest.mark.parametrize(
    "item",
    [
        {"b": {"c": 1}},
        {"b": "x" * 5000},
        {"b": [[1]]},
        {"x" * 300: 1},
    ],
    ids=["nested", "long", "a list of lists", "a long key"],
)
def test_what_is_not_declared_and_no_attribute_is_passed_over(item: dict[str, object]) -> None:
    value = changed(item={"a": "x", "c": 1, **item}, user={str(n): n for n in range(200)})
    [event] = decoder(DECLARED).decode(record(value))
    assert event.item == {"a": "x", "c": 1}
    assert len(event.user) == 128
    [read], _, rejected_ = decoder(DECLARED).decode_all([record(value)])
    assert not rejected_
    assert msgspec.structs.asdict(read)["item"].of_0 == "x"


def test_an_attribute_may_have_any_key() -> None:
    keys = ('a "quoted" one', "back\\slash", "line\nend", "class", "é", " ")
    settings = Settings(fields=tuple(FieldSpec(source=f"item.{key}") for key in keys))
    value = changed(item={key: key for key in keys})
    for declared in (settings, Settings(fields=settings.fields[3:])):
        [read], _, rejected_ = decoder(declared).decode_all([record(value)])
        assert not rejected_
        assert msgspec.structs.astuple(read.item) == tuple(field.key for field in declared.fields)


def test_ids_of_any_size_and_odd_characters_are_kept() -> None:
    [event] = decoder().decode(
        record(changed(user_id=None)[:-1].replace(b'"user_id":null', b'"user_id":18446744073709551617') + b"}")
    )
    assert str(event.user_id) == "18446744073709551617"
    [event] = decoder().decode(record(changed(user_id="a\x00é\U0001f600")))
    assert event.user_id == "a\x00é\U0001f600"


def test_a_tombstone_is_a_bad_record() -> None:
    with pytest.raises(BadRecordError, match="tombstone"):
        decoder().decode(Record("events", 0, 0, b"key", None))  # type: ignore[arg-type]


def test_the_edge_of_the_allowed_future_is_allowed() -> None:
    assert decoder().decode(record(changed(ts_ms=NOW_MS + 600_000)))


def test_an_over_long_record_is_not_even_parsed() -> None:
    small = Settings.model_validate({"events": {"max_bytes": 100}})
    error = rejected(b"[" * 101, small)
    assert error.reason == "too_large"
    assert "events.max_bytes" in error.detail


def test_a_declared_type_of_ones_own_is_read() -> None:
    own = load_settings(None, {"tasks": [{"name": "like", "event": "thumbs_up"}]})
    [event] = decoder(own).decode(record(changed(type="thumbs_up")))
    assert event.type == "thumbs_up"
    assert rejected(changed(type="like"), own).reason == "unknown_type"


def lines(**more: object) -> Mapping:
    return Mapping.model_validate(
        {
            "format": "csv",
            "columns": ["u", "i", "what", "when"],
            "user_id": "u",
            "item_id": "i",
            "type": "what",
            "types": {"pv": "content_view", "buy": "purchase", "note": "note"},
            "ignore": ["fav"],
            "time": {"column": "when", "unit": "s"},
            **more,
        }
    )


def test_a_csv_line_of_a_topic_is_read_by_the_mapping_and_named_by_its_place() -> None:
    [event] = decoder(mapping=lines()).decode(record(b'"a,b",2,pv,1700000000\n', offset=41))
    assert event == Event(event_id="events-2-41", type="content_view", user_id="a,b", item_id="2", ts_ms=NOW_MS)


def test_a_row_of_a_csv_file_arrives_as_json_and_is_read_by_the_same_mapping() -> None:
    row = b'{"u":"a","i":"2","what":"buy","when":"1700000000"}'
    assert decoder(mapping=lines()).decode(record(row))[0].type == "purchase"


def test_an_ignored_type_gives_no_event_and_no_error() -> None:
    assert decoder(mapping=lines()).decode(record(b"a,2,fav,1700000000")) == []


@pytest.mark.parametrize(
    ("value", "reason", "told"),
    [
        (b"a,2,pv", "mapping", "3 cells"),
        (b'a,"2,pv,1', "mapping", "csv"),
        (b"\xff,2,pv,1", "mapping", "utf-8"),
        (b"a,2,pv,soon", "mapping", "`when`"),
        (b"a,,pv,1700000000", "missing_field", "`i`"),
        (b"a,2,return,1700000000", "unknown_type", "`what`"),
        (b"a,2,note,1700000000", "unknown_type", "[[tasks]]"),
        (b"a,2,pv,1700000000000", "future", "milliseconds"),
        (b"{broken", "not_json", "JSON"),
    ],
)
def test_a_bad_line_names_its_column(value: bytes, reason: str, told: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        decoder(mapping=lines()).decode(record(value))
    assert (caught.value.reason, told in caught.value.detail) == (reason, True), caught.value.detail


def test_a_flag_that_no_task_asks_for_costs_its_row_nothing() -> None:
    mapping = lines(flags=[{"column": "i", "values": ["2"], "type": "like"}])
    assert [event.type for event in decoder(mapping=mapping).decode(record(b"a,2,pv,1700000000"))] == ["content_view"]


def outcome(value: bytes, mapping: Mapping | None) -> str:
    try:
        decoder(mapping=mapping).decode(record(value))
    except BadRecordError as error:
        return error.reason
    return "events"


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
ids = text | st.integers(-(1 << 70), 1 << 70)
scalars = (
    text
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
)
attributes = st.dictionaries(text, scalars | st.lists(scalars, max_size=3), max_size=4)
events = st.builds(
    Event,
    event_id=ids,
    type=st.sampled_from(["content_view", "click", "purchase"]),
    user_id=ids,
    item_id=ids,
    ts_ms=st.integers(0, NOW_MS),
    request_id=text | st.none(),
    context=attributes,
    item=attributes,
    user=attributes,
    value=st.floats(allow_nan=False, allow_infinity=False) | st.none(),
    truth=st.none() | st.dictionaries(text, st.floats(0, 1), max_size=2),
)


@given(events)
@profile(deadline=None, max_examples=200)
def test_a_valid_event_comes_back_as_it_was(event: Event) -> None:
    assert decoder().decode(record(msgspec.json.encode(event))) == [event]


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda x: x.encode("utf-8", "surrogatepass")))
@profile(deadline=None, max_examples=300)
def test_arbitrary_bytes_raise_nothing_but_a_bad_record(value: bytes) -> None:
    for mapping in (None, lines()):
        assert outcome(value, mapping) in {"events", *REASONS}


json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
)


@given(st.dictionaries(st.sampled_from([*Event.__struct_fields__, "u", "i", "what", "when"]), json_values))
@profile(deadline=None, max_examples=300)
def test_arbitrary_json_raises_nothing_but_a_bad_record(fields: dict[str, object]) -> None:
    row = {"u": "a", "i": "b", "what": "pv", "when": 1, **fields}
    for mapping, value in (
        (None, {**GOOD, **fields}),
        (lines(), row),
        (lines(value="when", item={"x": "event_id"}), row),
    ):
        assert outcome(msgspec.json.encode(value), mapping) in {"events", *REASONS}


def test_the_shortest_event_that_can_hold_a_number_beyond_range_is_looked_at() -> None:
    """Shorter records are not searched for one, so this one is the boundary."""
    settings = Settings.model_validate(
        {"tasks": [{"name": "c"}], "events": {"exposure": "c"}, "fields": [{"source": "item.a"}]}
    )
    for n_digits, is_bad in ((308, False), (309, True)):
        value = b'{"event_id":1,"type":"c","user_id":1,"item_id":1,"ts_ms":1,"item":{"a":%s}}' % (b"9" * n_digits)
        if is_bad:
            assert rejected(value, settings).reason == "non_finite"
        else:
            assert decoder(settings).decode(record(value))
