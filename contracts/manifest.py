"""The manifest: what a snapshot says of itself, and how anybody can tell that it is whole."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from contracts.records import Offsets, decode_offsets

FORMAT = 5
"""Rises when another library could not read a snapshot, or would score by it what it did not learn: 2 has the smoothed
rates and the trails of values; 3 has shorter ones of these, and its weights are for dense features about their mean; 4
counts by chance what goes together by chance; 5 has a wide part over ids."""

FILE_NAME = r"^[a-z][a-z0-9_-]{0,63}\.(safetensors|msgpack)\Z"

_Count = Annotated[int, Meta(ge=0)]


class ManifestError(ValueError):
    """Bytes that are no manifest, or no longer the one that was written."""


class FileEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file of a snapshot, by its SHA-256; of a delta, which is written each few seconds, by its XXH3 (ADR 20)."""

    sha256: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
    bytes: _Count
    xxh3_128: Annotated[str, Meta(pattern=r"^([0-9a-f]{32})?\Z")] = ""

    def __post_init__(self) -> None:
        if bool(self.sha256) == bool(self.xxh3_128):
            raise ValueError("a file has one checksum, sha256 or xxh3_128")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One snapshot, all of it cut at the same batch boundary; or one delta behind it.

    ``delta`` is the delta's number, from 1; its ``offsets`` and ``n_events`` are those of the snapshot.

    ``offsets`` is ``{topic: {partition: next offset}}``; ``topic_ids`` are Kafka's ids of these topics, where it told
    them: the offsets are of no other topic of the name. ``event_time_ms`` is the newest event time in it,
    ``created_ms`` the wall clock. ``layout`` is what the snapshot's writer and readers agree on about its arrays,
    plain JSON; ``settings`` shaped them (:meth:`contracts.settings.Settings.shaping`), and are empty where nobody
    said. A name in ``files`` has no folder in it: a manifest cannot point outside its own.
    """

    format: int = FORMAT
    library: str
    version: Annotated[int, Meta(ge=1, le=99_999_999)]
    delta: _Count = 0
    created_ms: int
    event_time_ms: int
    n_events: _Count
    offsets: dict[str, dict[Annotated[str, Meta(pattern=r"^[0-9]{1,9}\Z")], _Count]]
    topic_ids: dict[str, str] = {}
    settings_fingerprint: str
    tasks: list[str]
    layout: dict[str, Any]
    settings: dict[str, Any] = {}
    files: dict[Annotated[str, Meta(pattern=FILE_NAME)], FileEntry]

    @property
    def resume_offsets(self) -> Offsets:
        """The next offset of every partition, as sources take it."""
        return decode_offsets(self.offsets)

    @property
    def total_bytes(self) -> int:
        """Size of the snapshot's files together."""
        return sum(entry.bytes for entry in self.files.values())


class _Envelope(msgspec.Struct, frozen=True):
    sha256: str
    manifest: msgspec.Raw


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON for people and programs: the manifest, and the checksum of its exact bytes.

    :raises ValueError: the layout is not plain JSON.
    """
    try:
        body = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"A manifest's layout must be plain JSON: {error}") from error
    return msgspec.json.encode(_Envelope(hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))


def decode_manifest(data: bytes) -> Manifest:
    """The inverse of :func:`encode_manifest`, whatever the bytes are.

    :raises ManifestError: not a manifest, changed since it was written, or of another format.
    """
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        body = bytes(envelope.manifest)
        if hashlib.sha256(body).hexdigest() != envelope.sha256:
            raise ManifestError("the checksum does not match: it was changed after it was written")
        plain = msgspec.json.decode(body)
        found = plain.get("format") if isinstance(plain, Mapping) else None
        if isinstance(found, int) and found > FORMAT:
            raise ManifestError(f"format {found} is newer than {FORMAT}, which this library reads; upgrade it")
        if isinstance(found, int) and found < FORMAT:
            raise ManifestError(
                f"format {found} is older than {FORMAT}, which this library reads: its model reads features otherwise. "
                "Go on with the library that wrote it, or start in a new snapshot folder and replay (`learn --from`)"
            )
        return msgspec.json.decode(body, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"not a manifest: {error}") from error
