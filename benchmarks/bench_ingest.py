"""How many events a second the ingest side takes: decode, de-duplicate, join, encode; no learner.

python -m benchmarks.bench_ingest
"""

import msgspec
from prometheus_client import CollectorRegistry

from benchmarks.figures import Figure, rates, show
from benchmarks.workloads import shop_events, shop_settings
from contracts.records import Record
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.sources.memory import EOF, MemorySource

_EVENTS = 200_000
"""So many fill the trails that co-visits are looked up for."""
_TOGETHER = 250
"""Records decoded together, as the ingest does."""
TITLE = f"Ingest: {_EVENTS:,} events of a busy shop, one core, no learner"


def figures() -> list[Figure]:
    """Decoding alone, and all of it."""
    events = [msgspec.json.encode(event) for event in shop_events(_EVENTS)]
    records = [Record("events", 0, offset, None, value) for offset, value in enumerate(events)]
    settings = shop_settings()
    decoder = EventDecoder(settings, None, lambda: 1 << 52)

    def decode() -> int:
        for start in range(0, _EVENTS, _TOGETHER):
            decoder.decode_all(records[start : start + _TOGETHER])
        return _EVENTS

    def ingest() -> int:
        source = MemorySource(
            {("events", 0): [*records, EOF]},
            max_records=_EVENTS,  # one poll: what it takes to tell the lag of a list is no figure of ours
        )
        made = Ingest(settings, source, decoder, MemoryDeadLetters(), StreamMetrics(CollectorRegistry()))
        for _ in made.stream():
            pass
        assert made.n_events == _EVENTS
        return _EVENTS

    return [
        Figure(f"decode, {sum(map(len, events)) / len(events):.0f} bytes each", rates(decode), "events/s"),
        Figure("decode, join, encode (exposure mode)", rates(ingest), "events/s"),
    ]


if __name__ == "__main__":
    show({TITLE: figures()})
