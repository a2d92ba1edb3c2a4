"""Ten million open exposures: what the ingest holds when ever more stay open than `events.max_open` allows.

python -m benchmarks.open_exposures [--exposures 15000000] [--max-open 10000000] [--one user|item]
python -m benchmarks.open_exposures --learner [--max-mib 4096] [--exposures 15000000] [--one user|item]

No window closes: each exposure waits for seven days, and has a user and an item of its own but for what `--one` makes
the same. Ends with 1, and says why, where the cap is not reached or not kept, resident memory grows by more than a
twentieth after it, an exposure is neither open nor counted as evicted, or the ingest's state takes more bytes than the
plan of `memory.max_mib` says (`anabranch check`).

With `--learner` the exposures are learned, in two processes with snapshots as `learn` does it, and `memory.max_mib`
alone says how many may be open. Ends with 1 where that many are not reached, or both processes together come to hold
more than the cap and the snapshots' copies, beside what they held at the first batch: interpreters and libraries.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from benchmarks.figures import say
from benchmarks.pipeline import peak_mib
from cli._assembly import assemble_behind
from contracts.batch import Batch
from contracts.memory import MIB, plan, snapshot_bytes, waiting_bytes
from contracts.records import Offsets, Partition, Record
from contracts.settings import Settings, load_settings
from learner.metrics import LearnerMetrics
from learner.snapshot import SnapshotStore
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.feed import Inputs
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.process import ProcessFeed
from streamer.simulator import START_MS
from streamer.sources._base import Condition

_TOPIC = "events"
_POLLED = 10_000
_MOST_GROWN = 1.05
_AT_THE_LEARNER = "embedding.max_mib"
_COUNTED = {
    "exposures given up": ("anabranch_joiner_evicted_total", {}),
    "ids forgotten early (generations)": ("anabranch_deduplicate_ended_early_total", {}),
    "users forgotten": ("anabranch_state_evicted_total", {"what": "users"}),
    "items forgotten": ("anabranch_state_evicted_total", {"what": "items"}),
    "pairs forgotten": ("anabranch_state_evicted_total", {"what": "pairs"}),
}


class Views:
    """A source of exposures made as they are polled, a millisecond apart.

    :param one: what they have in common, `user` or `item`; empty: nothing.
    """

    def __init__(self, n_exposures: int, one: str = "") -> None:
        self._n_exposures, self._next = n_exposures, 0
        self._users, self._items = int(one != "user"), int(one != "item")

    @property
    def ended(self) -> bool:
        """All were polled."""
        return self._next == self._n_exposures

    def poll(self, timeout_ms: int) -> list[Record]:  # noqa: ARG002 - nobody waits
        """The next ten thousand."""
        begin, self._next = self._next, min(self._next + _POLLED, self._n_exposures)
        return [
            Record(
                _TOPIC,
                0,
                n,
                None,
                b'{"event_id":"%d","type":"content_view","user_id":%d,"item_id":%d,"ts_ms":%d}'
                % (n, n * self._users, n * self._items, START_MS + n),
            )
            for n in range(begin, self._next)
        ]

    def position(self) -> Offsets:
        """The next one."""
        return {(_TOPIC, 0): self._next}

    def seek(self, offsets: Offsets) -> None:
        """Go on elsewhere."""
        self._next = offsets[_TOPIC, 0]

    def commit(self, offsets: Offsets) -> None:
        """Nobody asks."""

    def lag(self, *, ask: bool = False) -> dict[Partition, int]:  # noqa: ARG002 - it is always known
        """What is left."""
        return {(_TOPIC, 0): self._n_exposures - self._next}

    def condition(self) -> Condition:
        """Always well."""
        return Condition()

    def close(self) -> None:
        """Holds nothing."""


def resident_mib(process: int | str = "self") -> float:
    """What a process holds now."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def settings_of(max_open: int, max_mib: float = 0.0, every_events: int = 1 << 40) -> Settings:
    """No window closes.

    :param max_open: 0: what the cap makes of it.
    """
    tasks = [{"name": "content_view"}, {"name": "click", "window": "7d"}, {"name": "purchase", "window": "7d"}]
    snapshot = {"every_events": every_events, "every": "3650d"}
    events = {"max_open": max_open} if max_open else {}
    return load_settings(None, {"tasks": tasks, "events": events, "memory": {"max_mib": max_mib}, "snapshot": snapshot})


def planned_mib(settings: Settings) -> float:
    """What the plan lets the ingest take: all but what is the learner's, its table and the features that wait."""
    n_bytes = sum(one.n_bytes for one in plan(settings) if one.part.setting != _AT_THE_LEARNER)
    return (n_bytes - settings.events.max_open * waiting_bytes(settings)) / MIB


def rows(settings: Settings, n_exposures: int, n_rows: int, one: str = "") -> Iterator[dict[str, float]]:
    """What is held and what was given up, so many times on the way."""
    registry = CollectorRegistry()
    decoder, letters = EventDecoder(settings, None, lambda: 1 << 52), MemoryDeadLetters()
    ingest = Ingest(settings, Views(n_exposures, one), decoder, letters, StreamMetrics(registry))

    def told(name: str, labels: dict[str, str]) -> float:
        return registry.get_sample_value(name, labels) or 0.0

    due = n_exposures // n_rows
    for _ in ingest.stream():
        if ingest.n_events >= due:
            due += n_exposures // n_rows
            ingest.tell()
            found = {"exposures read": ingest.n_events, "open": told("anabranch_joiner_open_keys", {})}
            found |= {what: told(*counter) for what, counter in _COUNTED.items()}
            state_mib = sum(ingest.n_bytes.values()) / MIB
            yield found | {"state, MiB": state_mib, "resident, MiB": resident_mib()}


@contextmanager
def view_inputs(settings: Settings, n_exposures: int, one: str, _: Callable[[], bool]) -> Iterator[Inputs]:
    """The exposures, for an ingest in a process of its own."""
    yield Inputs(Views(n_exposures, one), EventDecoder(settings, None, lambda: 1 << 52), MemoryDeadLetters())


@dataclass
class Learned:
    """A run of ingest and learner; resident memory in MiB, of the learner and of the ingest."""

    first: tuple[float, float] = (0.0, 0.0)
    """At the first batch."""
    peak: tuple[float, float] = (0.0, 0.0)
    most_open: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)

    @property
    def held_mib(self) -> float:
        """By both at their peaks, but for what they held at the first batch."""
        return sum(self.peak) - sum(self.first)


def learned(settings: Settings, n_exposures: int, n_rows: int, one: str = "") -> Learned:
    """Learn the exposures in two processes, with the snapshots that the settings ask for."""
    registry, found, n_events = CollectorRegistry(), Learned(), 0
    with tempfile.TemporaryDirectory() as folder, SnapshotStore(Path(folder)) as store, ProcessFeed() as feed:
        feed.open(settings, partial(view_inputs, settings, n_exposures, one), registry, lambda: False)
        assembly = assemble_behind(settings, feed, LearnerMetrics(registry, settings.evaluation.detector), store=store)
        pids = (os.getpid(), feed.pid or 0)

        def look(batch: Batch) -> None:
            nonlocal n_events
            if not n_events:
                found.first = (resident_mib(pids[0]), resident_mib(pids[1]))
            n_events += batch.n_events
            if n_events * n_rows >= (len(found.rows) + 1) * n_exposures:
                n_open = registry.get_sample_value("anabranch_joiner_open_keys") or 0.0
                found.most_open = max(found.most_open, int(n_open))
                told = {"exposures read": n_events, "open": n_open}
                for what, (name, labels) in _COUNTED.items():
                    told[what] = registry.get_sample_value(name, labels) or 0.0
                told["rows evicted"] = registry.get_sample_value("anabranch_embedding_evicted_total") or 0.0
                told |= {"learner, MiB": resident_mib(pids[0]), "ingest, MiB": resident_mib(pids[1])}
                say("  " + ", ".join(f"{what}: {value:,.0f}" for what, value in told.items()))
                found.rows.append(told)

        assembly.run(look)
        found.peak = (peak_mib(pids[0]), peak_mib(pids[1]))
    return found


def memory_table(found: Learned, settings: Settings) -> Table:
    """Each process at its peak, and both against the cap."""
    made = Table(title=f"memory.max_mib = {settings.memory.max_mib:,g}; resident, MiB")
    for column in ("process", "at the first batch", "at its peak", "in between"):
        made.add_column(column, justify="left" if column == "process" else "right")
    both = (sum(found.first), sum(found.peak))
    for name, first, peak in zip(
        ("learner", "ingest", "both"), (*found.first, both[0]), (*found.peak, both[1]), strict=True
    ):
        made.add_row(name, f"{first:,.0f}", f"{peak:,.0f}", f"{peak - first:,.0f}", end_section=name == "ingest")
    made.add_row("the cap", "", "", f"{settings.memory.max_mib:,.0f}")
    made.add_row("snapshots' copies, at most", "", "", f"{snapshot_bytes(settings) / MIB:,.0f}")
    return made


def memory_problems(found: Learned, settings: Settings) -> list[str]:
    """What is wrong with a run, a line each; empty: nothing."""
    told = []
    if found.most_open < settings.events.max_open:
        told.append(f"{found.most_open:,} exposures were open at most, {settings.events.max_open:,} may be: give more")
    allowed = settings.memory.max_mib + snapshot_bytes(settings) / MIB
    if found.held_mib > allowed:
        told.append(f"both processes came to hold {found.held_mib:,.0f} MiB, {allowed:,.0f} are allowed")
    return told


def problems(found: Sequence[dict[str, float]], max_open: int, most_mib: float) -> list[str]:
    """What is wrong with the rows, a line each; empty: nothing.

    :param most_mib: of the ingest's state.
    """
    told = [
        f"{row['exposures read']:,.0f} read, {row['open']:,.0f} open, {row['exposures given up']:,.0f} given up"
        for row in found
        if row["open"] > max_open or row["open"] + row["exposures given up"] != row["exposures read"]
    ]
    full = [row["resident, MiB"] for row in found if row["open"] == max_open]
    if len(full) < 2:
        told.append(f"{len(full)} rows with {max_open:,} open exposures are too few to tell whether memory grows")
    elif max(full) > _MOST_GROWN * full[0]:
        told.append(f"resident memory grew from {full[0]:,.0f} to {max(full):,.0f} MiB after the cap was reached")
    most = max(row["state, MiB"] for row in found)
    if most > most_mib:
        told.append(f"the state took {most:,.1f} MiB, the plan says {most_mib:,.1f} at most")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.open_exposures", description=__doc__)
    parser.add_argument("--exposures", type=int, default=15_000_000, help="%(default)s")
    parser.add_argument("--max-open", type=int, default=10_000_000, help="`events.max_open` (%(default)s)")
    parser.add_argument("--one", choices=["user", "item"], default="", help="what all exposures are of; else none are")
    parser.add_argument("--learner", action="store_true", help="learn them, under `memory.max_mib`")
    parser.add_argument("--max-mib", type=float, default=4096.0, help="`memory.max_mib` for `--learner` (%(default)g)")
    options = parser.parse_args()
    told = _with_learner(options) if options.learner else _ingest_alone(options)
    for problem in told:
        say(f"  {problem}")
    return 1 if told else 0


def _with_learner(options: argparse.Namespace) -> list[str]:
    settings = settings_of(0, options.max_mib, options.exposures // 4)
    run = learned(settings, options.exposures, 15, options.one)
    console = Console(width=170, highlight=False)
    console.print(_rows_table(run.rows, f"events.max_open = {settings.events.max_open:,}; ingest and learner"))
    console.print(memory_table(run, settings))
    return memory_problems(run, settings)


def _ingest_alone(options: argparse.Namespace) -> list[str]:
    settings = settings_of(options.max_open)
    found = []
    for row in rows(settings, options.exposures, 15, options.one):
        say("  " + ", ".join(f"{what}: {value:,.0f}" for what, value in row.items()))
        found.append(row)
    title = f"events.max_open = {options.max_open:,}; the ingest alone, no learner"
    Console(width=150, highlight=False).print(_rows_table(found, title))
    return problems(found, options.max_open, planned_mib(settings))


def _rows_table(found: Sequence[dict[str, float]], title: str) -> Table:
    table = Table(title=title)
    for what in found[0]:
        table.add_column(what, justify="right")
    for row in found:
        table.add_row(*(f"{value:,.0f}" for value in row.values()))
    return table


if __name__ == "__main__":
    sys.exit(main())
