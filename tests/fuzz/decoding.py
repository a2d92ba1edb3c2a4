"""What every record must keep to, whatever its bytes: the target of the fuzzers beside this file.

An input is a line that names how the record is read (``canonical``, or a ready mapping), then the record's bytes.
Run as a program it is atheris' (``make fuzz``): ``python tests/fuzz/decoding.py NEW_INPUTS CORPUS -max_total_time=60``.
What is found and reaches new code goes into the corpus by ``make fuzz-merge``; a file there with a name was written.
"""

import sys
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
NOW_MS = 1_800_000_000_000


@cache
def reader(name):
    """Decoder and gatherer for a way to read."""
    from contracts.settings import load_settings
    from features.schema import FeatureSchema
    from streamer.decode import EventDecoder
    from streamer.mapping import load_mapping
    from streamer.match import Gatherer

    fields = {"fields": [{"source": "item.brand"}, {"source": "item.price", "kind": "numeric"}]}
    mapping = None if name == "canonical" else load_mapping(name)
    settings = load_settings(None, fields if mapping is None else mapping.settings)
    return EventDecoder(settings, mapping, lambda: NOW_MS), Gatherer(settings, FeatureSchema.of(settings)), settings


def check(data):
    """The record is events, which become columns of finite numbers or unknown ones, or is rejected with its reason."""
    from contracts.records import Record
    from streamer.mapping import ready_mappings

    name, _, value = data.partition(b"\n")
    how = name.decode("ascii", "replace")
    decoder, gatherer, settings = reader(how if how in ready_mappings() else "canonical")
    events, places, rejected = decoder.decode_all([Record("events", 0, 7, None, value)])
    assert len(places) == len(events)
    assert not (events and rejected), "a record is read or rejected, not both"
    for _, error in rejected:
        assert error.reason
        assert error.detail
    for event in events:
        assert event.type in settings.event_types
        assert event.ts_ms <= NOW_MS + settings.events.max_future_ms
    gathered = gatherer(events, np.zeros(len(events), np.int64), np.ones(len(events), np.bool_))
    assert (gathered.columns.event != 0).all(), "0 is an empty cell"
    assert all(len(one) == len(events) for one in (*gathered.hashes, *gathered.numbers))
    assert not any(np.isinf(one).any() for one in gathered.numbers)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import atheris

    with atheris.instrument_imports(include=["contracts", "streamer"]):
        import streamer.decode
        import streamer.mapping
        import streamer.match  # noqa: F401
    # A merge starts further processes by this name, through a shell.
    atheris.Setup([f"{sys.executable} {sys.argv[0]}", *sys.argv[1:]], check)
    atheris.Fuzz()
