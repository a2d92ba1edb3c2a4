"""Snapshots that the real learner made from a simulated shop, and a real server over them."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
import torch
import uvicorn
from prometheus_client import CollectorRegistry

from cli._assembly import Assembly, assemble
from contracts.events import Attributes, Event
from contracts.records import Record
from contracts.settings import Settings
from learner.snapshot import SnapshotStore
from serving.app import create_app
from serving.metrics import ServingMetrics
from serving.reload import Reloader
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.simulator import ShopSimulator, SimulatorSettings
from streamer.sources.memory import MemorySource

CUTS = (500, 800, 1200)
"""Events in snapshots 1, 2 and 3."""
TOPIC = ("events", 0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Small, with a field of each kind and owner, and what is off by default turned on."""
    return Settings.model_validate(
        {
            "fields": [
                {"source": "item.category"},
                {"source": "item.brand"},
                {"source": "item.price", "kind": "numeric"},
                {"source": "item.tags", "kind": "multi", "slots": 3},
                {"source": "item.title", "kind": "text"},
                {"source": "user.country"},
                {"source": "context.device"},
                {"source": "context.position", "kind": "numeric"},
            ],
            "tasks": [
                {"name": "content_view"},
                {"name": "click", "window": "30s"},
                {"name": "purchase", "window": "60s", "delay": "delay_head", "wait": "3s"},
            ],
            "features": {"users": 2000, "items": 2000, "pairs": 4096, "values": 4096},
            "embedding": {"max_mib": 2.0},
            "model": {
                "width": 4,
                "experts": 2,
                "expert_layers": (8, 6),
                "tower": 4,
                "history": "attention",
                "field_gates": True,
            },
            "serve": {"max_items": 50, "max_body_bytes": 20_000, "reload": "20ms"},
        }
    )


@pytest.fixture(scope="session")
def events() -> list[Event]:
    """A simulated shop's events, a few more than the snapshots hold."""
    shop = SimulatorSettings(
        seed=3,
        events=CUTS[-1] + 200,
        rate=20.0,
        n_users=120,
        n_items=100,
        click_rate=0.3,
        click_delay_ms=2000,
        purchase_delay_ms=3000,
        click_window_ms=30_000,
        purchase_window_ms=60_000,
        new_items=0,
    )
    return [msgspec.structs.replace(event, item=_described(event.item)) for event in ShopSimulator(shop).events()]


def _described(item: Attributes) -> Attributes:
    category, brand = item.get("category"), item.get("brand")
    return {**item, "tags": [category, brand], "title": f"{brand} of {category}"}


def _assembly(
    settings: Settings, events: list[Event], first: int, store: SnapshotStore | None, snapshot: Any = None
) -> Assembly:
    records = [Record(*TOPIC, first + index, None, msgspec.json.encode(event)) for index, event in enumerate(events)]
    return assemble(
        settings,
        MemorySource({TOPIC: records}),
        EventDecoder(settings, None, lambda: events[-1].ts_ms if events else 0),
        MemoryDeadLetters(),
        CollectorRegistry(),
        store=store,
        snapshot=snapshot,
    )


@pytest.fixture(scope="session")
def make_assembly() -> Callable[..., Assembly]:
    """``(settings, events, first_offset, store, snapshot=None)`` to the real process over a list of events."""
    return _assembly


@pytest.fixture(scope="session")
def learned(settings: Settings, events: list[Event], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with snapshots 1 to 3; not to be written to."""
    folder: Path = tmp_path_factory.mktemp("learned") / "snapshots"
    with SnapshotStore(folder, keep=5) as store:
        snapshot, start = None, 0
        for cut in CUTS:
            _assembly(settings, events[start:cut], start, store, snapshot).run()
            snapshot, start = store.load(), cut
            assert snapshot.manifest.n_events == cut
    return folder


@pytest.fixture
def folder(learned: Path, tmp_path: Path) -> Path:
    """A copy of the learned snapshots, to do with as one likes."""
    copy = tmp_path / "snapshots"
    shutil.copytree(learned, copy)
    return copy


@pytest.fixture
def now_ms(events: list[Event]) -> int:
    """Ten seconds after the newest event of the newest snapshot."""
    return max(event.ts_ms for event in events[: CUTS[-1]]) + 10_000


@contextmanager
def _serving(settings: Settings, folder: Path, now_ms: int) -> Iterator[SimpleNamespace]:
    registry = CollectorRegistry()
    metrics = ServingMetrics(registry)
    reloader = Reloader(settings, SnapshotStore(folder, settings.snapshot.keep), metrics, lambda: now_ms)
    app = create_app(settings, reloader, metrics, registry, lambda: now_ms)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                deadline = time.monotonic() + 60
                while not server.started and time.monotonic() < deadline:
                    time.sleep(0.01)
                yield SimpleNamespace(
                    client=client, port=port, registry=registry, reloader=reloader, value=registry.get_sample_value
                )
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def serving() -> Callable[..., Any]:
    """``with serving(settings, folder, now_ms) as server``: the app on a free port, its clock standing still."""
    return _serving


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Wait until something holds; fail after half a minute."""

    def wait(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, "it did not come to hold"
            time.sleep(0.01)

    return wait


@pytest.fixture
def server(settings: Settings, learned: Path, now_ms: int, wait_until: Any) -> Iterator[SimpleNamespace]:
    """A ready server over the newest learned snapshot."""
    with _serving(settings, learned, now_ms) as made:
        wait_until(lambda: made.reloader.scorer is not None)
        yield made
