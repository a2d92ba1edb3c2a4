"""A wall clock that is put forward or back: snapshots go on, and what is learned stays the same."""

import itertools

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from contracts.batch import Barrier
from contracts.events import Event
from contracts.records import Record
from contracts.settings import HOUR, SECOND, Settings
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.sources.memory import MemorySource

START_MS = 1_700_000_000_000
SETTINGS = Settings.model_validate({"snapshot": {"every": "1m", "every_events": 1_000_000}, "batch": {"span": "1s"}})


def run(clock_ms):
    """Barriers and batches of an hour in which each second brings a view; the clock is asked at each batch."""
    events = [
        Event(event_id=f"e{n}", type="content_view", user_id=n % 7, item_id=n % 5, ts_ms=START_MS + n * SECOND)
        for n in range(3600)
    ]
    records = [Record("events", 0, at, None, msgspec.json.encode(event)) for at, event in enumerate(events)]
    source = MemorySource({("events", 0): records}, max_records=1)
    decoder = EventDecoder(SETTINGS, None, lambda: START_MS + 2 * HOUR)
    registry = StreamMetrics(CollectorRegistry())
    ingest = Ingest(SETTINGS, source, decoder, MemoryDeadLetters(), registry, lambda: False, clock_ms)
    barriers, batches = [], []
    for piece in ingest.stream():
        if isinstance(piece, Barrier):
            barriers.append(piece.n_events)
        else:
            batches.append((piece.n_events, piece.rows.ids.tobytes()))
    return barriers, batches


def ticking(jump_ms):
    """A clock that goes on ten seconds whenever it is asked, and jumps once."""
    ticks = itertools.count()
    return lambda: (n := next(ticks)) * 10 * SECOND + START_MS + (jump_ms if n > 40 else 0)


@pytest.mark.parametrize("jump_ms", [-48 * HOUR, -30 * SECOND, 48 * HOUR])
def test_snapshots_go_on_after_a_jump_and_batches_are_the_same(jump_ms):
    steady, jumped = run(ticking(0)), run(ticking(jump_ms))
    assert jumped[1] == steady[1]
    assert len(steady[0]) > 10
    assert abs(len(jumped[0]) - len(steady[0])) <= 2


@pytest.mark.parametrize(("jump_ms", "are_read"), [(-48 * HOUR, False), (-8 * 60 * SECOND, True), (48 * HOUR, True)])
def test_the_decoder_asks_the_clock_at_each_poll_and_reads_again_once_it_is_right(jump_ms, are_read):
    """Live events while the clock is off: only one that is behind by more than `events.max_future` refuses them."""
    now = [START_MS]
    decoder = EventDecoder(SETTINGS, None, lambda: now[0])

    def read(n):
        event = Event(event_id=f"e{n}", type="content_view", user_id=1, item_id=1, ts_ms=START_MS + n * SECOND)
        found = decoder.decode_all([Record("events", 0, n, None, msgspec.json.encode(event))])
        return len(found.events), [error.reason for _, error in found.rejected]

    assert read(0) == (1, [])
    now[0] += jump_ms
    assert read(1) == ((1, []) if are_read else (0, ["future"]))
    now[0] -= jump_ms
    assert read(2) == (1, [])
