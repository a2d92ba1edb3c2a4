"""One version of a snapshot: arrays as safetensors, state as msgpack; nothing that loads can execute code.

The safetensors are written here, read by their own library: the library's writer copies everything twice under the
interpreter lock, and the learner would stand still for it.
"""

import errno
import hashlib
import itertools
import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import safetensors.numpy
import xxhash
from numpy.typing import NDArray

from contracts.manifest import FILE_NAME, FileEntry, Manifest, ManifestError, decode_manifest
from learner.disk import Part

Arrays = dict[str, NDArray[Any]]

MANIFEST = "manifest.json"
_DTYPES = {"b1": "BOOL"} | {f"{kind}{size}": f"{kind.upper()}{8 * size}" for kind in "iuf" for size in (1, 2, 4, 8)}

GROUP = "safetensors"
STATE = "msgpack"
_MOST_MANIFEST_BYTES = 16 << 20


class SnapshotError(Exception):
    """The snapshot store cannot do what was asked."""


class NoSnapshotError(SnapshotError):
    """There is no such version, or none at all."""


class SnapshotLockedError(SnapshotError):
    """Another process writes to the store.

    :param owner: its name.
    """

    def __init__(self, directory: Path, owner: str) -> None:
        super().__init__(
            f"{directory} is written by {owner}. Stop it first, set another snapshot.directory, or wait in its shadow "
            "(`anabranch learn --standby`)."
        )
        self.owner = owner


class SnapshotSupersededError(SnapshotError):
    """Another process has become the store's writer since this one did; this one must not publish any more."""


class SnapshotDamagedError(SnapshotError):
    """A version that cannot be used, with the file and what is wrong with it."""

    def __init__(self, version: int, file: str, problem: str) -> None:
        super().__init__(f"Snapshot v{version:08d} is damaged: {file}: {problem}.")
        self.version = version
        self.file = file
        self.problem = problem


class VanishedError(NoSnapshotError):
    """The version was there, and is not any more: the writer deleted it meanwhile."""


class Skipped(NamedTuple):
    """A version passed over, and why."""

    version: int
    problem: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was loaded: arrays by group and name, states by name; ``skipped`` are newer versions that are damaged."""

    manifest: Manifest
    groups: dict[str, Arrays]
    states: dict[str, Any]
    skipped: tuple[Skipped, ...] = ()


def file_name(name: str, kind: str) -> str:
    """The file of a group or a state.

    :raises ValueError: not a name for a file.
    """
    file = f"{name}.{kind}"
    if not re.fullmatch(FILE_NAME, file):
        raise ValueError(f"A snapshot's group or state is named in lower case, digits, - and _; found `{name}`.")
    return file


def check_group(name: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays of a group, made contiguous where they are not.

    :raises ValueError: an array of another type than bool, integer or float.
    """
    checked = {}
    for key, array in arrays.items():
        if key == "__metadata__" or array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise ValueError(f"The array `{name}.{key}` must be of bool, integers or floats; found {array.dtype}.")
        # safetensors writes the memory as it lies, whatever the strides say.
        checked[key] = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    return checked


def encode_group(arrays: Arrays) -> list[Part]:
    """Checked arrays as a safetensors file: its header, then each array's own memory, the widest items first.

    A header is its length as eight bytes, then JSON, padded so that the arrays begin at a multiple of eight.
    """
    ordered = sorted(arrays.items(), key=lambda named: (-named[1].itemsize, named[0]))
    ends = list(itertools.accumulate((array.nbytes for _, array in ordered), initial=0))
    header = msgspec.json.encode(
        {
            name: {"dtype": _DTYPES[array.dtype.str[1:]], "shape": array.shape, "data_offsets": offsets}
            for (name, array), offsets in zip(ordered, itertools.pairwise(ends), strict=True)
        }
    )
    header += b" " * (-len(header) % 8)
    return [
        len(header).to_bytes(8, "little") + header,
        *(array.reshape(-1).view(np.uint8).data for _, array in ordered),
    ]


def file_entry(parts: Sequence[Part], *, quick: bool = False) -> FileEntry:
    """Size and checksum of a file's bytes.

    :param quick: XXH3, a tenth of the time of SHA-256.
    """
    digest = xxhash.xxh3_128() if quick else hashlib.sha256()
    for part in parts:
        digest.update(part)
    n_bytes, found = sum(memoryview(part).nbytes for part in parts), digest.hexdigest()
    return FileEntry("", n_bytes, found) if quick else FileEntry(found, n_bytes)


def encode_state(name: str, state: object) -> bytes:
    """A state as bytes.

    :raises ValueError: it holds something that is not plain msgpack.
    """
    try:
        return msgspec.msgpack.encode(state)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"The state `{name}` must hold plain msgpack types: {error}") from error


def decode_file(file: str, data: bytes) -> Any:
    """The arrays of a group, or a state. The arrays own their memory and can be written to.

    :raises ValueError: the bytes are not what the file's name says.
    """
    try:
        if file.endswith(f".{GROUP}"):
            return safetensors.numpy.load(data)
        return msgspec.msgpack.decode(data)
    except Exception as error:  # a parser may say anything about bytes made to hurt it
        raise ValueError(f"cannot be read: {error}") from error


def regular_size(path: Path) -> int:
    """Bytes of a regular file.

    :raises OSError: it is not there, or is a link, a pipe or a device: those lead elsewhere, or never end.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return status.st_size


class VersionFolder:
    """The folder of one version, read with every doubt: whatever is wrong becomes :class:`SnapshotDamagedError`.

    :param delta: of which delta behind the version it is the folder; 0: of the version itself.
    """

    def __init__(self, path: Path, version: int, delta: int = 0) -> None:
        self._path = path
        self._version = version
        self._delta = delta

    def manifest(self) -> Manifest:
        """The manifest.

        :raises NoSnapshotError: there is no such version.
        :raises SnapshotDamagedError: the manifest cannot be used.
        """
        if not os.path.lexists(self._path):
            raise VanishedError(f"{self._path.parent} has no snapshot {self._version}; see `anabranch snapshots list`.")
        if self._path.is_symlink() or not self._path.is_dir():
            raise self._damaged(MANIFEST, f"{self._path.name} is no folder")
        if (n_bytes := self._size(MANIFEST)) > _MOST_MANIFEST_BYTES:
            raise self._damaged(MANIFEST, f"{n_bytes} bytes, where {_MOST_MANIFEST_BYTES} are the most")
        try:
            manifest = decode_manifest(self._read(MANIFEST))
        except ManifestError as error:
            raise self._damaged(MANIFEST, str(error)) from error
        if (manifest.version, manifest.delta) != (self._version, self._delta):
            what = f"version {manifest.version}" + (f", delta {manifest.delta}" if manifest.delta else "")
            raise self._damaged(MANIFEST, f"it is the manifest of {what}")
        return manifest

    def load(self, groups: Collection[str] | None, states: Collection[str] | None) -> Snapshot:
        """The named groups and states, or all where None.

        :raises NoSnapshotError: there is no such version.
        :raises SnapshotDamagedError: something of what was asked for cannot be used.
        """
        manifest = self.manifest()
        wanted = {GROUP: groups, STATE: states}
        loaded: dict[str, dict[str, Any]] = {GROUP: {}, STATE: {}}
        for kind, names in wanted.items():
            for name in names or ():
                if f"{name}.{kind}" not in manifest.files:
                    raise self._damaged(MANIFEST, f"it names no file {name}.{kind}")
        for file, entry in manifest.files.items():
            name, kind = file.split(".")
            names = wanted[kind]
            if names is None or name in names:
                loaded[kind][name] = self._parse(file, entry)
        return Snapshot(manifest, loaded[GROUP], loaded[STATE])

    def verify(self, *, quick: bool) -> list[str]:
        """What is wrong, a line per file.

        :param quick: look at the manifest and the sizes only.
        :raises NoSnapshotError: there is no such version.
        """
        try:
            manifest = self.manifest()
        except SnapshotDamagedError as error:
            return [f"{error.file}: {error.problem}"]
        problems = []
        for file, entry in manifest.files.items():
            try:
                if quick:
                    self._check_size(file, entry)
                else:
                    self._parse(file, entry)
            except SnapshotDamagedError as error:
                problems.append(f"{error.file}: {error.problem}")
        return problems

    def _parse(self, file: str, entry: FileEntry) -> Any:
        self._check_size(file, entry)
        data = self._read(file)
        if file_entry([data], quick=not entry.sha256) != entry:
            raise self._damaged(file, "the checksum does not match the manifest's")
        try:
            return decode_file(file, data)
        except ValueError as error:
            raise self._damaged(file, str(error)) from error

    def _check_size(self, file: str, entry: FileEntry) -> None:
        if (n_bytes := self._size(file)) != entry.bytes:
            raise self._damaged(file, f"{n_bytes} bytes instead of {entry.bytes}")

    def _size(self, file: str) -> int:
        try:
            return regular_size(self._path / file)
        except OSError as error:
            raise self._unreadable(file, error) from error

    def _read(self, file: str) -> bytes:
        try:
            return (self._path / file).read_bytes()
        except OSError as error:
            raise self._unreadable(file, error) from error
        except MemoryError as error:  # a file with holes is as long as somebody likes
            raise self._damaged(file, "it does not fit into memory") from error

    def _unreadable(self, file: str, error: OSError) -> SnapshotError:
        if not self._path.is_dir():
            return VanishedError(f"{self._path} was deleted while it was read.")
        return self._damaged(file, error.strerror or str(error))

    def _damaged(self, file: str, problem: str) -> SnapshotDamagedError:
        return SnapshotDamagedError(self._version, file, problem)
