"""An ingest in a process of its own gives the same pieces, and never outlives or outruns who reads them."""

import contextlib
import gzip
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from cli._ingest import log_inputs
from contracts.batch import Barrier
from contracts.settings import Settings
from streamer.feed import Feed, IngestProcessError, OpenInputs
from streamer.prefetch import ThreadFeed
from streamer.process import DEPTH, ProcessFeed, start_feed
from streamer.simulator import ShopSimulator, SimulatorSettings
from streamer.sources.file import FileSourceError

N_EVENTS = 4_000
SETTINGS = Settings(
    features={"users": 1000, "items": 1000, "pairs": 8192, "values": 8192},
    batch={"max_rows": 128},
    snapshot={"every_events": 900, "every": "1h"},
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("log") / "events.jsonl"
    lines = [msgspec.json.encode(event) for event in ShopSimulator(SimulatorSettings(events=N_EVENTS)).events()]
    lines[50:50] = [b"no json", b"{}"]
    file.write_bytes(b"\n".join(lines))
    return file


def inputs(file: Path) -> OpenInputs:
    return partial(log_inputs, SETTINGS, None, file, None)


def opened(feed: Feed, file: Path, stop: Callable[[], bool] = lambda: False) -> CollectorRegistry:
    registry = CollectorRegistry()
    feed.open(SETTINGS, inputs(file), registry, stop)
    return registry


def plain(value: Any) -> Any:
    """A piece as plain values, its arrays as their bytes: equal means equal bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__ if name != "release"}
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return value


def told(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def is_gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


def until_error(stream: Iterator[Any]) -> tuple[int, Exception]:
    """The number of pieces before the error, and the error."""
    n_pieces = 0
    try:
        for _ in stream:
            n_pieces += 1
    except Exception as error:
        return n_pieces, error
    raise AssertionError(f"no error after {n_pieces} pieces")


def taken(stream: Iterator[Any]) -> Iterator[Any]:
    """The stream as a learner reads it, each barrier released once it was looked at."""
    for piece in stream:
        yield piece
        if isinstance(piece, Barrier):
            piece.release()


def everything(feed: Feed, file: Path) -> dict[str, Any]:
    with feed:
        registry = opened(feed, file)
        pieces = [(type(piece), plain(piece)) for piece in taken(feed.stream())]
        metrics = told(registry)
        return {
            "pieces": pieces,
            "metrics": metrics,
            "windows": plain(feed.close_open_windows()),
            "rejected": feed.rejected(),
            "label_delays": feed.label_delays().tolist(),
            "standing": feed.standing,
        }


@pytest.fixture(scope="module")
def in_a_thread(log: Path) -> dict[str, Any]:
    return everything(ThreadFeed(), log)


def test_both_feeds_give_the_same_pieces_counts_and_metrics_bit_for_bit(log: Path, in_a_thread: dict[str, Any]) -> None:
    found = everything(ProcessFeed(), log)
    assert [kind for kind, _ in found["pieces"]].count(Barrier) >= 4
    assert len(found["pieces"]) > 3 * DEPTH, "each slot should have been used again"
    assert found["metrics"] == in_a_thread["metrics"]
    assert 'anabranch_events_rejected_total{reason="not_json"} 1.0' in found["metrics"]
    assert found == in_a_thread
    assert sum(map(sum, found["label_delays"])) > 0
    assert (found["standing"].n_events, found["standing"].n_rejected) == (N_EVENTS, 2)
    assert found["standing"].progress == 1.0


def test_a_feed_that_starts_from_a_barrier_gives_what_came_behind_it(log: Path, in_a_thread: dict[str, Any]) -> None:
    with ThreadFeed() as first:
        opened(first, log)
        stream = first.stream()
        barrier = next(piece for piece in stream if isinstance(piece, Barrier))
        groups = {
            group: {name: array.copy() for name, array in arrays.items()} for group, arrays in barrier.groups.items()
        }
        stream.close()
    n_before = 1 + [kind for kind, _ in in_a_thread["pieces"]].index(Barrier)
    rest = log.with_name("rest") / log.name
    rest.parent.mkdir()
    rest.write_bytes(b"\n".join(log.read_bytes().split(b"\n")[barrier.offsets[log.name, 0] :]))
    with ProcessFeed() as feed:
        opened(feed, rest)
        feed.restore(groups, barrier.state)
        pieces = [(type(piece), plain(piece)) for piece in taken(feed.stream())]
    batches = [piece for kind, piece in in_a_thread["pieces"][n_before:] if kind is not Barrier]
    assert [piece for kind, piece in pieces if kind is not Barrier] == batches


def test_the_ingest_is_never_more_than_the_ring_ahead(log: Path) -> None:
    with ProcessFeed() as feed:
        opened(feed, log)
        stream = feed.stream()
        next(stream)
        time.sleep(0.5)
        assert feed.pid is not None
        os.kill(feed.pid, signal.SIGKILL)  # what it made until now lies there to be read
        n_made, error = until_error(stream)
    assert isinstance(error, IngestProcessError)
    assert 1 + n_made == DEPTH


def test_a_stop_is_passed_on_and_the_last_piece_is_a_barrier(log: Path) -> None:
    asked = False
    with ProcessFeed() as feed:
        opened(feed, log, lambda: asked)
        stream = taken(feed.stream())
        pieces = list(islice(stream, 2))
        asked = True
        pieces += stream
    assert isinstance(pieces[-1], Barrier)
    assert 0 < pieces[-1].n_events < N_EVENTS


def test_the_ingest_imports_neither_torch_nor_the_learner(log: Path) -> None:
    maps = Path("/proc")
    if not maps.exists():
        pytest.skip("needs /proc")
    with ProcessFeed() as feed:
        opened(feed, log)
        loaded = (maps / str(feed.pid) / "maps").read_text()
    assert "numpy" in loaded
    assert "libtorch" not in loaded


def test_a_process_killed_is_an_error_that_names_it_and_nothing_is_left(log: Path) -> None:
    with ProcessFeed() as feed:
        opened(feed, log)
        stream = feed.stream()
        next(stream)
        pid = feed.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(IngestProcessError, match=rf"pid {pid}\) ended by SIGKILL.*memory"):
            list(stream)
    assert is_gone(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_not_the_ingests_to_answer(log: Path, number: signal.Signals) -> None:
    with ProcessFeed() as feed:
        assert feed.pid is not None
        os.kill(feed.pid, number)  # while it starts
        opened(feed, log)
        os.kill(feed.pid, number)
        assert sum(not isinstance(piece, Barrier) for piece in taken(feed.stream())) > DEPTH


def test_the_ingests_own_error_is_raised_behind_the_pieces_before_it(log: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(log.read_bytes() * 3)[:-60_000])
    found = []
    for feed in (ThreadFeed(), ProcessFeed()):
        with feed:
            opened(feed, cut)
            found.append(until_error(taken(feed.stream())))
    (n_pieces, expected), (n_again, error) = found
    assert n_again == n_pieces > 0
    assert (type(error), str(error)) == (FileSourceError, str(expected))
    assert "In the ingest process:\n" in error.__notes__[0]


def test_an_error_while_it_connects_is_raised_where_it_is_opened(tmp_path: Path) -> None:
    with ProcessFeed() as feed, pytest.raises(FileSourceError, match=r"none\.jsonl"):
        opened(feed, tmp_path / "none.jsonl")


def test_who_leaves_early_leaves_no_process_behind(log: Path) -> None:
    pids = []
    for n_read in (0, 1):
        with ProcessFeed() as feed:
            opened(feed, log)
            list(islice(feed.stream(), n_read))
            pids.append(feed.pid)
    with contextlib.suppress(KeyboardInterrupt), ProcessFeed() as feed:
        pids.append(feed.pid)
        raise KeyboardInterrupt
    assert all(pid is not None and is_gone(pid) for pid in pids)


@pytest.mark.parametrize(("processes", "kind"), [(1, ThreadFeed), (2, ProcessFeed)])
def test_the_setting_chooses_the_feed(processes: int, kind: type) -> None:
    assert type(start_feed(processes)) is kind


def test_by_default_there_are_two_processes_where_there_are_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    for cores in (1, 2, 8):
        monkeypatch.setattr("streamer.process._usable_cores", lambda cores=cores: cores)
        chosen.append(type(start_feed(Settings().processes)))
    assert chosen == [ThreadFeed, ProcessFeed, ProcessFeed]
