"""How many events a second `evaluate` takes from a file, without ranking: everything but Kafka and snapshots.

python -m benchmarks.bench_evaluate
"""

import tempfile
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry

from benchmarks.workloads import add, rates, shop_events, shop_settings, show, table
from cli._assembly import assemble
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.sources.file import FileSource

_EVENTS = 100_000


def main() -> None:
    figures = table(f"evaluate --ranking 0: {_EVENTS:,} simulated shop events from a JSON lines file, default model")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "shop.jsonl"
        path.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in shop_events(_EVENTS)))
        settings = shop_settings()
        quality: dict[str, float] = {}

        def run() -> int:
            with FileSource(path) as source:
                decoder = EventDecoder(settings, None, lambda: 1 << 52)
                assembly = assemble(settings, source, decoder, MemoryDeadLetters(), CollectorRegistry())
                assembly.run()
                assembly.close_open_windows()
            report = assembly.report(1.0, settings.model.name)
            quality.update({name: task["last_half"]["ne"] for name, task in report["tasks"].items()})
            return int(report["events"])

        add(figures, "file → weights and metrics", rates(run), "events/s")
    show(figures)
    print("NE, last half:", ", ".join(f"{name} {value:.3f}" for name, value in quality.items() if value is not None))


if __name__ == "__main__":
    main()
