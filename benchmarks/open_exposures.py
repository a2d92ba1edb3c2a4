"""Ten million open exposures: what the ingest holds when ever more stay open than `events.max_open` allows.

python -m benchmarks.open_exposures [--exposures 15000000] [--max-open 10000000] [--one user|item]

No window closes: each exposure waits for seven days, and has a user and an item of its own but for what `--one` makes
the same. Ends with 1, and says why, where the cap is not reached or not kept, resident memory grows by more than a
twentieth after it, an exposure is neither open nor counted as evicted, or the ingest's state takes more bytes than the
plan of `memory.max_mib` says (`anabranch check`).
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from benchmarks.figures import say
from contracts.memory import MIB, plan, waiting_bytes
from contracts.records import Offsets, Partition, Record
from contracts.settings import Settings, load_settings
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
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


def resident_mib() -> float:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def settings_of(max_open: int) -> Settings:
    """No window closes, no snapshot is made."""
    tasks = [{"name": "content_view"}, {"name": "click", "window": "7d"}, {"name": "purchase", "window": "7d"}]
    never = {"every_events": 1 << 40, "every": "3650d"}
    return load_settings(None, {"tasks": tasks, "events": {"max_open": max_open}, "snapshot": never})


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
    options = parser.parse_args()
    settings = settings_of(options.max_open)
    found = []
    for row in rows(settings, options.exposures, 15, options.one):
        say("  " + ", ".join(f"{what}: {value:,.0f}" for what, value in row.items()))
        found.append(row)
    table = Table(title=f"events.max_open = {options.max_open:,}; the ingest alone, no learner")
    for what in found[0]:
        table.add_column(what, justify="right")
    for row in found:
        table.add_row(*(f"{value:,.0f}" for value in row.values()))
    Console(width=150, highlight=False).print(table)
    told = problems(found, options.max_open, planned_mib(settings))
    for problem in told:
        say(f"  {problem}")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
