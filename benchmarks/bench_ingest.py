"""How many events a second the ingest side takes: decode, de-duplicate, join, encode; no learner.

python -m benchmarks.bench_ingest
"""

import msgspec
from prometheus_client import CollectorRegistry

from benchmarks.workloads import add, rates, shop_events, shop_settings, show, table
from contracts.records import Record
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.sources.memory import EOF, MemorySource

_EVENTS = 60_000


def main() -> None:
    events = [msgspec.json.encode(event) for event in shop_events(_EVENTS)]
    records = [Record("events", 0, offset, None, value) for offset, value in enumerate(events)]
    figures = table(
        f"Ingest: {_EVENTS:,} simulated shop events of {sum(map(len, events)) / len(events):.0f} bytes, one core"
    )
    settings = shop_settings()
    decoder = EventDecoder(settings, None, lambda: 1 << 52)

    def decode() -> int:
        for record in records:
            decoder.decode(record)
        return _EVENTS

    def ingest() -> int:
        source = MemorySource({("events", 0): [*records, EOF]}, max_records=4000)
        made = Ingest(settings, source, decoder, MemoryDeadLetters(), StreamMetrics(CollectorRegistry()))
        for _ in made.stream():
            pass
        assert made.n_events == _EVENTS
        return _EVENTS

    add(figures, "decode", rates(decode), "events/s")
    add(figures, "decode, join, encode (exposure mode)", rates(ingest), "events/s")
    show(figures)


if __name__ == "__main__":
    main()
