"""Records from a list: what tests of everything behind a source read from."""

from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import pairwise

from contracts.records import Offsets, Partition, Record
from streamer.sources._base import Condition


class Marker(Enum):
    """What may stand between records (as in bytewax's TestingSource). A source that resumes behind one passes it."""

    EOF = "eof"
    """The partition ends here for this source; the next one, at this position, goes on behind it."""
    ABORT = "abort"
    """``poll`` raises :class:`AbortError`, once all before it was returned."""
    PAUSE = "pause"
    """One ``poll`` returns nothing of this partition."""


EOF, ABORT, PAUSE = Marker.EOF, Marker.ABORT, Marker.PAUSE


class AbortError(Exception):
    """An ABORT marker was reached: the crash that a test asked for."""


class MemorySource:
    """Bounded; partitions take turns, at most ``max_records`` a poll and partition.

    :param partitions: each partition's records, their offsets rising, with markers between.
    :raises ValueError: a record in another partition's list, or offsets that do not rise.
    """

    def __init__(self, partitions: Mapping[Partition, Sequence[Record | Marker]], max_records: int = 1000) -> None:
        self._entries = {partition: tuple(entries) for partition, entries in partitions.items()}
        self._max_records = max_records
        for partition, entries in self._entries.items():
            records = [entry for entry in entries if isinstance(entry, Record)]
            for record in records:
                if (record.topic, record.partition) != partition:
                    raise ValueError(f"Records of {partition} must name it; found {record}")
            for before, after in pairwise(records):
                if after.offset <= before.offset:
                    raise ValueError(f"Offsets of {partition} must rise; found {after.offset} after {before.offset}")
        self._index = dict.fromkeys(self._entries, 0)
        self._next = {partition: self._first_offset(partition) for partition in self._entries}

    @property
    def ended(self) -> bool:
        """Every partition is at its end or at an EOF."""
        return all(self._at_end(partition) for partition in self._entries)

    def poll(self, timeout_ms: int) -> list[Record]:  # noqa: ARG002 - nothing to wait for
        """The next records of each partition, up to its next marker.

        :raises AbortError: an ABORT marker is next.
        """
        polled: list[Record] = []
        for partition, entries in self._entries.items():
            for _ in range(self._max_records):
                if self._at_end(partition):
                    break
                entry = entries[self._index[partition]]
                if entry is ABORT:
                    if polled:  # first let what was read be returned
                        return polled
                    raise AbortError(f"ABORT in {partition} before offset {self._next[partition]}")
                if entry is PAUSE:
                    # Only a pause that no record of this poll came before is used up: it makes a whole poll empty.
                    if not polled or polled[-1][:2] != partition:
                        self._index[partition] += 1
                    break
                assert isinstance(entry, Record)  # noqa: S101 - for the type checker: the markers are done above
                self._index[partition] += 1
                self._next[partition] = entry.offset + 1
                polled.append(entry)
        return polled

    def position(self) -> Offsets:
        """The next offset of every partition."""
        return dict(self._next)

    def seek(self, offsets: Offsets) -> None:
        """Go on at these offsets, behind any marker before them.

        :raises ValueError: an unknown partition, or an offset beyond its end.
        """
        for partition, offset in offsets.items():
            if partition not in self._entries:
                raise ValueError(f"Unknown partition {partition}; found {sorted(self._entries)}")
            records = [entry for entry in self._entries[partition] if isinstance(entry, Record)]
            end = records[-1].offset + 1 if records else 0
            if not 0 <= offset <= end:
                raise ValueError(f"Offset of {partition} must be within 0 to {end}; found {offset}")
        for partition, entries in self._entries.items():
            self._next[partition] = offsets.get(partition, self._first_offset(partition))
            before = [
                index
                for index, entry in enumerate(entries)
                if isinstance(entry, Record) and entry.offset < self._next[partition]
            ]
            index = before[-1] + 1 if before else 0
            while before and index < len(entries) and isinstance(entries[index], Marker):
                index += 1
            self._index[partition] = index

    def commit(self, offsets: Offsets) -> None:
        """Nothing is told to anybody."""

    def lag(self, *, ask: bool = False) -> dict[Partition, int]:  # noqa: ARG002 - what is there is always known
        """Records left up to the end or the next EOF."""
        left = {}
        for partition, entries in self._entries.items():
            rest = entries[self._index[partition] :]
            stop = rest.index(EOF) if EOF in rest else len(rest)
            left[partition] = sum(isinstance(entry, Record) for entry in rest[:stop])
        return left

    def condition(self) -> Condition:
        """Nothing to lose."""
        return Condition()

    def close(self) -> None:
        """Nothing to let go of."""

    def _at_end(self, partition: Partition) -> bool:
        entries, index = self._entries[partition], self._index[partition]
        return index >= len(entries) or entries[index] is EOF

    def _first_offset(self, partition: Partition) -> int:
        return next((entry.offset for entry in self._entries[partition] if isinstance(entry, Record)), 0)
