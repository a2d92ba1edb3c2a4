"""Records made to hurt: each is an event or a bad record, and the stream goes on behind it."""

from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from contracts.records import BadRecordError, Record
from contracts.settings import Settings
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.mapping import Mapping
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.sources.memory import EOF, MemorySource

NOW_MS = 1_700_000_000_000
GOOD: dict[str, Any] = {"event_id": "e", "type": "content_view", "user_id": "u", "item_id": "i", "ts_ms": NOW_MS}


def _with(field: str, raw: str) -> bytes:
    """A good event but for one field, whose JSON is given as it stands."""
    rest = msgspec.json.encode({key: value for key, value in GOOD.items() if key != field}).decode()
    return f'{{"{field}":{raw},{rest[1:]}'.encode(errors="surrogatepass")


DEEP = {
    "lists": b"[" * 100_000,
    "closed lists": b"[" * 100_000 + b"]" * 100_000,
    "objects": b'{"a":' * 100_000,
    "lists in an attribute": _with("item", '{"brand":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "objects in an attribute": _with("item", '{"a":' * 100_000 + "1" + "}" * 100_000),
    "lists in a field that is not declared": _with("nobody", "[" * 100_000 + "]" * 100_000),
}
NUMBERS = {
    f"{field} {name}": _with(field, raw if "." not in owner else f'{{"price":{raw}}}')
    for field, owner in (("item", "item.price"), ("ts_ms", "ts_ms"), ("value", "value"), ("user_id", "user_id"))
    for name, raw in {
        "1e400": "1e400",
        "-1e400": "-1e400",
        "10**400": "1" + "0" * 400,
        "10**100000": "1" + "0" * 100_000,
        "1e-100000": "1e-100000",
        "0.000…1": "0." + "0" * 100_000 + "1",
        "1e999999999999": "1e999999999999",
        "2**63": str(1 << 63),
        "2**64": str(1 << 64),
        "-2**63-1": str(-(1 << 63) - 1),
        "NaN": "NaN",
        "Infinity": "Infinity",
    }.items()
}
TEXTS = {
    f"{field} {name}": _with(field, f'"{raw}"' if field != "item" else f'{{"brand":"{raw}"}}')
    for field in ("item", "user_id", "type", "event_id")
    for name, raw in {
        "high surrogate": "\\ud800",
        "low surrogate": "\\udfff",
        "surrogates swapped": "\\udc00\\ud800",
        "surrogate before a letter": "\\ud83dx",
        "surrogate as bytes": "\ud800",
        "nul": "\\u0000",
        "a million letters": "a" * 900_000,
        "right to left": "\u202e\u0000".replace("\u0000", ""),
    }.items()
} | {
    "keys that repeat": b'{"type":"click",' * 1 + msgspec.json.encode(GOOD)[1:],
    "a key that is a surrogate": _with("item", '{"\\ud800":1}'),
    "not UTF-8": b'{"event_id":"\xff\xfe"}',
    "overlong UTF-8": _with("user_id", '"x"').replace(b"x", b"\xc0\xaf"),
    "a byte order mark": b"\xef\xbb\xbf" + msgspec.json.encode(GOOD),
    "UTF-16": msgspec.json.encode(GOOD).decode().encode("utf-16"),
    "many keys": _with("item", "{" + ",".join(f'"k{n}":1' for n in range(50_000)) + "}"),
    "a list without end": _with("item", '{"brand":[' + "1," * 200_000 + "1]}"),
}
PASSED_OVER = {
    f"not declared: {name}": _with("item", f'{{"a":{raw},"brand":"x"}}')
    for name, raw in {
        "1e400": "1e400",
        "nested": '{"b":[[1]]}',
        "surrogate": '"\\ud800"',
        "10**400": "1" + "0" * 400,
    }.items()
}
HOSTILE = {**PASSED_OVER, **DEEP, **NUMBERS, **TEXTS}
each = pytest.mark.parametrize("value", HOSTILE.values(), ids=list(HOSTILE))


def _settings() -> Settings:
    return Settings.model_validate(
        {
            "fields": [{"source": "item.brand"}, {"source": "item.price", "kind": "numeric"}],
            "features": {"users": 64, "items": 64},
        }
    )


def _mapping() -> Mapping:
    same = {name: name for name in ("type", "user_id", "item_id", "event_id")}
    return Mapping.model_validate(
        {
            **same,
            "time": {"column": "ts_ms", "unit": "ms"},
            "value": "value",
            "item": {"brand": "item.brand", "price": "item.price"},
        }
    )


@each
@pytest.mark.parametrize("mapped", [False, True], ids=["canonical", "mapped"])
def test_a_hostile_record_is_an_event_or_a_bad_record(value: bytes, mapped: bool) -> None:
    decoder = EventDecoder(_settings(), _mapping() if mapped else None, lambda: NOW_MS)
    record = Record("events", 0, 0, None, value)
    # Nothing else is raised; what passes can be written down again, and so can the reason for what does not.
    decoded = decoder.decode_all([record])
    for _, error in decoded.rejected:
        assert error.detail.encode()
    assert len(decoded.rejected) + len(msgspec.json.decode(msgspec.json.encode(decoded.events))) == 1
    # Whoever shows a record says of it what the ingest does.
    if decoded.rejected:
        with pytest.raises(BadRecordError) as caught:
            decoder.decode(record)
        assert caught.value.reason == decoded.rejected[0][1].reason
    else:
        [event], [read] = decoder.decode(record), decoded.events
        brand, _ = msgspec.structs.astuple(read.item)  # type: ignore[attr-defined]
        assert (event.event_id, event.item.get("brand")) == (read.event_id, brand)  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", DEEP.values(), ids=list(DEEP))
def test_nesting_ends_at_the_depth_limit_not_at_the_stack(value: bytes) -> None:
    decoder = EventDecoder(_settings(), None, lambda: NOW_MS)
    with pytest.raises(BadRecordError) as caught:
        decoder.decode(Record("events", 0, 0, None, value))
    assert caught.value.reason in {"not_json", "wrong_type"}


@pytest.mark.parametrize("mapped", [False, True], ids=["canonical", "mapped"])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
def test_a_record_is_read_up_to_the_depth_limit_and_one_level_deeper_is_a_bad_record(
    begin: str, end: str, mapped: bool
) -> None:
    """The limit is the interpreter's and depends on who calls, by a few levels; below it nothing is lost."""
    decoder = EventDecoder(_settings(), _mapping() if mapped else None, lambda: NOW_MS)

    def nested(n_levels: int) -> Record:
        return Record("events", 0, 0, None, _with("nobody", begin * n_levels + "1" + end * n_levels))

    read, refused = 1, 100_000
    while refused - read > 1:
        middle = (read + refused) // 2
        if decoder.decode_all([nested(middle)]).events:
            read = middle
        else:
            refused = middle
    assert read >= 100, "as deep as any event is"
    at_the_limit = decoder.decode_all([nested(read), nested(refused), nested(read)])
    assert at_the_limit.places == [0, 2]
    [(place, error)] = at_the_limit.rejected
    assert place == 1
    assert error.reason == "not_json"
    assert "recursion depth" in error.detail


def test_a_record_of_the_allowed_size_is_read_and_one_byte_more_is_a_bad_record() -> None:
    settings = _settings()
    empty = _with("nobody", '""')
    allowed = _with("nobody", '"' + "x" * (settings.events.max_bytes - len(empty)) + '"')
    assert len(allowed) == settings.events.max_bytes
    found = EventDecoder(settings, None, lambda: NOW_MS).decode_all(
        [Record("events", 0, 0, None, allowed), Record("events", 0, 1, None, allowed + b" ")]
    )
    assert found.places == [0]
    [(_, error)] = found.rejected
    assert error.reason == "too_large"


@pytest.mark.parametrize("field", ["item", "value", "ts_ms"])
@pytest.mark.parametrize("number", ["1e400", "-1e400", "10**400", "10**100000"])
def test_a_number_beyond_all_range_never_becomes_a_feature(field: str, number: str) -> None:
    decoder = EventDecoder(_settings(), None, lambda: NOW_MS)
    with pytest.raises(BadRecordError):
        decoder.decode(Record("events", 0, 0, None, NUMBERS[f"{field} {number}"]))


def test_the_stream_goes_on_behind_every_hostile_record() -> None:
    settings = _settings()
    letters, registry = MemoryDeadLetters(), CollectorRegistry()
    values = [item for n, value in enumerate(HOSTILE.values()) for item in (value, _good(n))]
    records = [Record("events", 0, offset, None, value) for offset, value in enumerate(values)]
    ingest = Ingest(
        settings,
        MemorySource({("events", 0): [*records, EOF]}),
        EventDecoder(settings, None, lambda: NOW_MS),
        letters,
        StreamMetrics(registry),
    )
    for _ in ingest.stream():
        pass
    good, bad = set(range(1, len(records), 2)), {letter.record.offset for letter in letters.letters}
    assert not good & bad
    n_duplicates = int(registry.get_sample_value("anabranch_events_duplicate_total") or 0)  # one id for most of them
    assert ingest.n_events + n_duplicates + len(bad) == len(records)


def _good(n: int) -> bytes:
    return msgspec.json.encode({**GOOD, "event_id": f"good-{n}", "ts_ms": NOW_MS + n})
