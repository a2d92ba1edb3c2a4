"""What every source promises; `streamer/testing.py` holds the tests that each one passes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from contracts.records import Offsets, Partition, Record


class Condition(NamedTuple):
    """How a source fares, for metrics. Without arguments: nothing can go wrong with it."""

    connected: bool = True
    """Whether there is a connection to where the records are."""
    skipped: Mapping[Partition, int] = MappingProxyType({})
    """Offsets passed over because their records are gone, by partition."""


class Source(Protocol):
    """Records in partition order, from a position that can be told and taken up again.

    1. ``poll`` returns each partition's records in offset order, none twice, none left out.
    2. ``position`` is the next offset of each partition, as far as ``poll`` has returned records.
    3. After ``seek(position)`` on a new source, ``poll`` goes on exactly where the old one stood.
    4. A bounded source sets ``ended`` once its last record was returned; ``poll`` then returns nothing.
    5. ``commit`` is a courtesy for lag tools: no source reads it back while a snapshot gives offsets.
    """

    @property
    def ended(self) -> bool:
        """No further record will come (always false for a stream without end)."""

    def poll(self, timeout_ms: int) -> list[Record]:
        """The next records, as many as are there; empty after ``timeout_ms`` without one."""

    def position(self) -> Offsets:
        """The next offset to be returned, by partition."""

    def seek(self, offsets: Offsets) -> None:
        """Go on at these offsets; a partition that is not named starts at its beginning.

        :raises ValueError: an offset that the source can tell it does not have.
        """

    def commit(self, offsets: Offsets) -> None:
        """Tell the outside how far this reader is."""

    def lag(self, *, ask: bool = False) -> dict[Partition, int]:
        """Records known to be there and not yet returned, by partition.

        :param ask: find out what came meanwhile, within a second or so: who does not poll is not told otherwise.
        """

    def condition(self) -> Condition:
        """How it fares."""

    def close(self) -> None:
        """Let go of connections and files; calling it twice is fine."""
