"""One record in thirty with an absurd price, none, or an empty category: the model learns as well as without them."""

import msgspec
from prometheus_client import CollectorRegistry

from cli._assembly import assemble
from contracts.records import Record
from contracts.settings import load_settings
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.sources.memory import MemorySource

POISONS = ({"price": 1e30}, {"price": None}, {"price": 1e17}, {"category": ""}, {"price": "", "category": None})


def learned(settings, events):
    """Quality and state after learning these events."""
    records = [Record("events", 0, number, None, event) for number, event in enumerate(events)]
    letters = MemoryDeadLetters()
    source = MemorySource({("events", 0): records})
    decoder = EventDecoder(settings, None, lambda: 1_900_000_000_000)
    assembly = assemble(settings, source, decoder, letters, CollectorRegistry())
    assembly.run()
    return assembly.report(0, ""), assembly.trainer, letters


def test_absurd_attributes_do_no_harm(straight):
    settings = load_settings(straight.flow.config)
    clean = [msgspec.json.encode(event) for event in straight.stream.events]
    poisoned = []
    for number, event in enumerate(clean):
        if number % 30 == 7:
            attributes = msgspec.json.decode(event)
            attributes["item"] = {**attributes.get("item", {}), **POISONS[number // 30 % len(POISONS)]}
            event = msgspec.json.encode(attributes)
        poisoned.append(event)
    assert clean != poisoned
    without, _, _ = learned(settings, clean)
    report, trainer, letters = learned(settings, poisoned)
    assert not letters.letters
    assert sum(trainer.n_skipped.values()) == 0
    for task in ("content_view", "click", "purchase"):
        assert report["tasks"][task]["examples"] == without["tasks"][task]["examples"]
        assert abs(report["tasks"][task]["all"]["ne"] - without["tasks"][task]["all"]["ne"]) < 0.02


def test_nan_and_infinity_are_dead_letters(straight):
    settings = load_settings(straight.flow.config)
    events = [msgspec.json.encode(event) for event in straight.stream.events[:300]]
    bad = [
        b'{"event_id":"n%d","type":"content_view","user_id":1,"item_id":2,"ts_ms":1735689600000,"item":{"price":%s}}'
        % (number, value)
        for number, value in enumerate((b"NaN", b"Infinity", b"-Infinity", b"1e400"))
    ]
    report, trainer, letters = learned(settings, events[:150] + bad + events[150:])
    assert (report["events"], report["rejected"]) == (300, 4)
    assert len(letters.letters) == 4
    assert sum(trainer.n_skipped.values()) == 0
