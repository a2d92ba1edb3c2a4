"""How many `/v1/rank` requests of 100 items a second one scoring worker answers on one core, and how fast.

    python -m benchmarks.bench_score

The worker is pinned to one core, the client (plain sockets, keep-alive) to another.
"""

import http.client
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.figures import RUNS, Figure, say, show
from benchmarks.workloads import shop_events, shop_settings
from cli._assembly import assemble
from cli._children import free_port
from cli._serving import run_server
from contracts.records import Record
from contracts.settings import Settings
from learner.snapshot import SnapshotStore
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.sources.memory import EOF, MemorySource

_EVENTS = 20_000
_ITEMS = 100
_REQUESTS = 1_000
TITLE = f"POST /v1/rank, {_ITEMS} items, one worker on one core, one connection, {_REQUESTS:,} requests a run"


def figures() -> list[Figure]:
    """Rate and latency over HTTP."""
    say("  training a model to serve")
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as directory:
        settings = shop_settings(
            snapshot={"directory": directory, "every_events": 1_000_000}, serve={"port": free_port()}
        )
        bodies = _train(settings)
        server = multiprocessing.get_context("spawn").Process(target=_serve, args=(settings,), daemon=True)
        server.start()
        try:
            if len(cores) > 1:
                os.sched_setaffinity(0, {max(cores)})
            _wait_until_ready(settings.serve.port)
            runs = [_run(settings.serve.port, bodies) for _ in range(RUNS + 1)][1:]
        finally:
            os.sched_setaffinity(0, cores)
            server.terminate()
            server.join()
    rate, p50, p99 = zip(*runs, strict=True)
    return [
        Figure("rate", rate, "requests/s"),
        Figure("latency, p50", p50, "ms", digits=2),
        Figure("latency, p99", p99, "ms", digits=2),
    ]


def _train(settings: Settings) -> list[bytes]:
    events = list(shop_events(_EVENTS))
    records = [Record("events", 0, offset, None, msgspec.json.encode(event)) for offset, event in enumerate(events)]
    with SnapshotStore(Path(settings.snapshot.directory)) as store:
        assemble(
            settings,
            MemorySource({("events", 0): [*records, EOF]}),
            EventDecoder(settings, None, lambda: 1 << 52),
            MemoryDeadLetters(),
            CollectorRegistry(),
            store=store,
        ).run()
    users = sorted({str(event.user_id) for event in events})
    items = sorted({str(event.item_id) for event in events})
    generator = np.random.default_rng(0)
    return [
        json.dumps(
            {
                "user_id": users[generator.integers(len(users))],
                "items": generator.choice(items, _ITEMS, replace=False).tolist(),
                "weights": {"click": 1, "purchase": 20},
                "context": {"device": "mobile", "position": 1},
                "ts_ms": events[-1].ts_ms,
            }
        ).encode()
        for _ in range(200)
    ]


def _serve(settings: Settings) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    run_server(settings)


def _wait_until_ready(port: int) -> None:
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError("The scoring worker did not become ready within a minute.")


def _run(port: int, bodies: list[bytes]) -> tuple[float, float, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    seconds = np.empty(_REQUESTS)
    started = time.perf_counter()
    for index in range(_REQUESTS):
        sent = time.perf_counter()
        connection.request("POST", "/v1/rank", bodies[index % len(bodies)])
        reply = connection.getresponse()
        reply.read()
        seconds[index] = time.perf_counter() - sent
        if reply.status != http.client.OK:
            raise RuntimeError(f"/v1/rank answered {reply.status}.")
    total = time.perf_counter() - started
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return _REQUESTS / total, float(p50), float(p99)


if __name__ == "__main__":
    show({TITLE: figures()})
