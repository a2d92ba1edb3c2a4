"""A source whose polls also do what others asked for: what touches a source belongs to the thread that polls it."""

from collections.abc import Callable

from contracts.records import Offsets, Partition, Record
from streamer.sources._base import Condition, Source


class Attended:
    """As the source it is given, but ``attend`` is called before each poll."""

    def __init__(self, source: Source, attend: Callable[[], None]) -> None:
        self._source = source
        self._attend = attend

    @property
    def ended(self) -> bool:
        """As the source's."""
        return self._source.ended

    def poll(self, timeout_ms: int) -> list[Record]:
        """As the source's."""
        self._attend()
        return self._source.poll(timeout_ms)

    def position(self) -> Offsets:
        """As the source's."""
        return self._source.position()

    def seek(self, offsets: Offsets) -> None:
        """As the source's."""
        self._source.seek(offsets)

    def commit(self, offsets: Offsets) -> None:
        """As the source's."""
        self._source.commit(offsets)

    def lag(self, *, ask: bool = False) -> dict[Partition, int]:
        """As the source's."""
        return self._source.lag(ask=ask)

    def condition(self) -> Condition:
        """As the source's."""
        return self._source.condition()

    def close(self) -> None:
        """As the source's."""
        self._source.close()
