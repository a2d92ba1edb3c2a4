"""Bytes as stated are bytes as taken: each part filled by itself, then all of them by one stream under one cap."""

import ctypes
import gc
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from benchmarks.workloads import random_batches
from cli._assembly import assemble
from contracts.events import Event
from contracts.memory import MIB, PARTS, array_bytes, embedding_row_bytes, map_bytes, plan
from contracts.records import Record
from contracts.settings import Settings
from features.compiled import compiled_loop
from features.counters import add
from features.covisits import add as count_together
from features.profiles import Profiles, item_row, new_profiles, user_row
from features.schema import FeatureSchema
from learner.embedding import EmbeddingTable
from learner.snapshot import SnapshotStore
from learner.store import ExampleStore
from learner.wide import WideWeights
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.deduplicate import Deduplicator, Seen, seen
from streamer.join import Join, Joiner, advance, expose, outcomes_of
from streamer.sources.memory import MemorySource

NOW_MS = 1_735_689_600_000
FIELDS = [
    {"source": "item.category"},
    {"source": "item.price", "kind": "numeric"},
    {"source": "user.country"},
    {"source": "context.device"},
]
PAGE = 4096
INGEST = ("profiles", "open_exposures", "event_ids")
FEW = 8192  # bytes of lines of cache, of tasks, windows and partitions
_AT_ONCE = 1000


def resident_bytes() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier and is used again would not show as grown
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


SIZES = {
    "fields": FIELDS,
    "embedding": {"max_mib": 48.0, "admit_after": 1},
    "features": {"users": 60_000, "items": 60_000, "pairs": 1 << 18, "values": 1 << 17, "covisits": 1 << 18},
    "events": {"max_open": 200_000, "deduplicate_max": 400_000},
}


def planned(settings, name):
    return sum(one.n_bytes for one in plan(settings) if one.part.setting.startswith(name))


@compiled_loop
def _meet(profiles: Profiles, n_ids: int, now_ms: int) -> None:
    for n in range(1, n_ids):
        row = user_row(profiles, n, now_ms)
        profiles.history[row] = 1
        profiles.trail[row] = 1
        item_row(profiles, n, now_ms)
        add(profiles.pairs, n, now_ms, 0, profiles.half_lives_ms)
        add(profiles.values, n, now_ms, 0, profiles.half_lives_ms)
        count_together(profiles.covisits, n, now_ms)


@compiled_loop
def _open(join: Join, partition: int, first: int, now_ms: int) -> None:
    for n in range(first, first + _AT_ONCE):
        expose(join, partition, now_ms + n, n, n << 24, n << 1)


@compiled_loop
def _hear(ids: Seen, first: int, now_ms: int) -> None:
    for n in range(first, first + _AT_ONCE):
        seen(ids, n, now_ms)


def filled_profiles(settings, n_ids):
    profiles = new_profiles(settings.features, FeatureSchema.of(settings), 1.0, 0)
    _meet(profiles, n_ids, NOW_MS)
    return profiles


def filled_table(settings, n_ids):
    schema = FeatureSchema.of(settings)
    n_fields = len(schema.layout.fields)
    table = EmbeddingTable(settings.embedding, settings.model.width, schema.layout.slots, 3, 0)
    for first in range(1, n_ids, _AT_ONCE):
        ids = np.arange(first, first + _AT_ONCE * n_fields).reshape(-1, n_fields)
        table.see(ids, np.ones(_AT_ONCE, np.bool_))
    wide = WideWeights(settings.embedding, schema.layout.slots, 4)
    wide.update(np.arange(n_fields).reshape(1, -1), torch.ones(1, 4), 1.0)
    arrays = (table._weights, table._accumulators, table._scratch, table._changed, table._sketch)
    return (table._directory, *arrays, wide._weights, wide._accumulators, wide._summed)


def filled_ids(settings, n_ids):
    ids = Deduplicator(settings.events.deduplicate_ms, settings.events.deduplicate_max)
    for first in range(1, n_ids, _AT_ONCE):
        ids.reserve(_AT_ONCE)
        _hear(ids.state, first, NOW_MS)
    return ids.state


def filled_join(settings, n_exposures):
    """A slot each, and all windows closed at once."""
    joiner = Joiner(settings.tasks, outcomes_of(settings), 0, settings.events.max_open)
    at = joiner.partition(("events", 0))
    for first in range(1, n_exposures, _AT_ONCE):
        joiner.reserve(_AT_ONCE)
        _open(joiner.state, at, first, NOW_MS)
        joiner.take_matured()
    joiner.reserve(_AT_ONCE)
    advance(joiner.state, at, NOW_MS + 2 * 86_400_000)
    return joiner.state


def filled_store(settings, n_exposures):
    """The features of as many slots as the join has."""
    store = ExampleStore(FeatureSchema.of(settings).layout, settings.events.max_open)
    [batch] = random_batches(settings, 1, _AT_ONCE)
    for first in range(0, min(n_exposures, settings.events.max_open + 4_000), _AT_ONCE):
        store.put(replace(batch, slot=np.arange(first, first + _AT_ONCE)))
    return (*store._columns.values(), store._changed)


def filled_exposures(settings, n_exposures):
    return filled_join(settings, n_exposures), filled_store(settings, n_exposures)


@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory in /proc")
@pytest.mark.parametrize(
    ("name", "fill"),
    [
        ("features", filled_profiles),
        ("embedding", filled_table),
        ("events.max_open", filled_exposures),
        ("events.deduplicate_max", filled_ids),
    ],
)
def test_a_part_that_is_full_takes_what_is_stated_in_arrays_and_in_resident_memory(name, fill) -> None:
    # In a process of its own: what other tests left behind may be freed at any time.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        in_arrays, grown = process.submit(_filled, fill).result()
    stated = planned(Settings.model_validate(SIZES), name)
    assert in_arrays == pytest.approx(stated, rel=0.03)
    assert in_arrays <= stated + FEW
    assert grown == pytest.approx(stated, rel=0.05)


def _filled(fill) -> tuple[int, int]:
    settings = Settings.model_validate(SIZES)
    fill(settings, 2_000)  # compiled, and the allocator warm
    before = resident_bytes()
    held = fill(settings, 1_000_000)
    return array_bytes(held), resident_bytes() - before


def test_each_user_item_pair_id_and_exposure_takes_the_bytes_in_the_documents() -> None:
    root = Path(__file__).parents[2]
    text = (root / "docs" / "operations.md").read_text(encoding="utf-8")
    readme = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    table = text.partition("## Memory")[2].partition("\n## ")[0]
    settings = Settings()
    stated = {}
    for part in PARTS[1:]:
        n = part.value(settings)
        each = round(part.n_bytes(settings, n) / n)
        stated[part.setting] = each
        assert f"| `{part.setting}` | {n:,.0f} | {each:,} |" in table, (part.setting, n, each)
    capacity = 2_000_000
    assert f"{embedding_row_bytes(16)} bytes" in table
    assert 24 <= map_bytes(capacity) / capacity < 48
    of_a_row = embedding_row_bytes(16) + 1  # and the mark that it changed
    assert (
        f"an embedding id takes {of_a_row + 24} to {of_a_row + 48} bytes, a user {stated['features.users']}, "
        f"an item {stated['features.items']}, a pair {stated['features.pairs']}, an open exposure "
        f"{stated['events.max_open']}, an event id {stated['events.deduplicate_max']} "
    ) in readme


def event(n, kind, request):
    return Event(
        event_id=f"e{n}",
        type=kind,
        user_id=f"u{n}",
        item_id=f"i{n}",
        ts_ms=NOW_MS + n,
        request_id=request,
        item={"category": f"c{n}", "price": float(n)},
        user={"country": f"k{n}"},
        context={"device": f"d{n % 3}"},
    )


def test_one_stream_that_fills_everything_stays_under_the_one_cap(tmp_path) -> None:
    max_mib, n_events = 24, 60_000
    settings = Settings.model_validate(
        {
            "fields": FIELDS,
            "memory": {"max_mib": max_mib},
            "embedding": {"admit_after": 1},
            "events": {"deduplicate_max": 20_000},
            "snapshot": {"directory": str(tmp_path), "every_events": 20_000},
        }
    )
    events = [event(n, ("content_view", "click")[n % 3 == 2], f"r{n}") for n in range(n_events)]
    records = [Record("events", 0, n, None, msgspec.json.encode(one)) for n, one in enumerate(events)]
    registry = CollectorRegistry()
    with SnapshotStore(tmp_path) as store:
        assembly = assemble(
            settings,
            MemorySource({("events", 0): records}, 1000),
            EventDecoder(settings, None, lambda: NOW_MS + n_events),
            MemoryDeadLetters(),
            registry,
            store=store,
        )
        assembly.run()
    told = registry.get_sample_value
    parts = {
        what: told("anabranch_state_bytes", {"what": what}) for what in ("profiles", "open_exposures", "event_ids")
    }
    parts["waiting"] = told("anabranch_waiting_bytes")
    parts["embedding"] = told("anabranch_embedding_bytes", {"table": "ids"})
    assert parts["profiles"] <= planned(settings, "features") + FEW
    assert parts["open_exposures"] + parts["waiting"] <= planned(settings, "events.max_open") + FEW
    assert parts["event_ids"] <= planned(settings, "events.deduplicate_max") + FEW
    assert parts["embedding"] <= settings.embedding.max_mib * MIB
    assert 0.5 * max_mib * MIB < sum(parts.values()) <= max_mib * MIB
    for what in ("users", "items", "pairs", "values"):
        assert told("anabranch_state_evicted_total", {"what": what}) > 0, what
    for name in ("joiner_evicted", "deduplicate_ended_early"):
        assert told(f"anabranch_{name}_total") > 0, name
    assert told("anabranch_embedding_evicted_total", {"table": "ids"}) > 0
