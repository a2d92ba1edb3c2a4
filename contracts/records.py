"""The record: what a source yields, and where in the source it stands."""

from collections.abc import Mapping
from typing import NamedTuple

Partition = tuple[str, int]
"""A topic (or a file's name) and a partition number."""

Offsets = dict[Partition, int]
"""The next offset to read, by partition: a resume position."""


class Record(NamedTuple):
    """Bytes as they came, with their place. A file's row is a record too: its offset is the row's number, from 0."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    timestamp_ms: int = 0


class BadRecordError(ValueError):
    """A record that cannot become events.

    :param reason: a short, bounded word for the metric's label: ``not_json``, ``missing_field``, ``wrong_type``,
        ``too_long``, ``non_finite``, ``future``, ``unknown_type``, ``mapping``, ``too_large``.
    :param detail: what a person reads: rule, path and found value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def encode_offsets(offsets: Mapping[Partition, int]) -> dict[str, dict[str, int]]:
    """Offsets as JSON: ``{topic: {partition: next offset}}``."""
    nested: dict[str, dict[str, int]] = {}
    for (topic, partition), offset in sorted(offsets.items()):
        nested.setdefault(topic, {})[str(partition)] = offset
    return nested


def decode_offsets(nested: Mapping[str, Mapping[str, int]]) -> Offsets:
    """The inverse of :func:`encode_offsets`."""
    return {(topic, int(partition)): offset for topic, parts in nested.items() for partition, offset in parts.items()}
