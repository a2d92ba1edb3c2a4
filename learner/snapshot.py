"""The snapshot store: versions of a model on disk, each whole or not there, the newest whole one found again.

One folder per version::

    LATEST                   names the version that counts
    LOCK                     held by the one process that writes, with its number, here 3
    v00000007/               manifest.json, <group>.safetensors, <state>.msgpack
    v00000009/delta-000012/  manifest.json, <group>.safetensors: what changed since delta 11; of the latest only
    v00000008.3.tmp/         being written or deleted, or left by a process that died
    v00000009.rolled-back/   set aside by a rollback
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import msgspec
from numpy.typing import NDArray

from contracts.manifest import FileEntry, Manifest, encode_manifest
from contracts.records import Offsets, encode_offsets
from learner.disk import Disk, Part, WriterLock
from learner.snapshot_files import (
    GROUP,
    MANIFEST,
    STATE,
    NoSnapshotError,
    Skipped,
    Snapshot,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotLockedError,
    SnapshotSupersededError,
    VanishedError,
    VersionFolder,
    check_group,
    encode_group,
    encode_state,
    file_entry,
    file_name,
    regular_size,
)

__all__ = [
    "NoSnapshotError",
    "Skipped",
    "Snapshot",
    "SnapshotDamagedError",
    "SnapshotError",
    "SnapshotLockedError",
    "SnapshotStore",
    "SnapshotSupersededError",
]

LATEST = "LATEST"
LOCK = "LOCK"
ROLLED_BACK = ".rolled-back"
TEMPORARY = ".tmp"
_VERSION = re.compile(r"v([0-9]{8})")
_ANY_VERSION = re.compile(r"v([0-9]{8})(\..+)?")
_DELTA = re.compile(r"delta-([0-9]{6})")
_LAST_VERSION = 99_999_999  # the greatest that these names, and a manifest, have room for
_RETRIES = 20

log = logging.getLogger(__name__)


class SnapshotStore:
    """Versions under one directory. Reading needs no lock and may happen while another process writes.

    The first :meth:`publish` or :meth:`rollback` takes the writer's lock; :meth:`acquire` takes it earlier.

    :param directory: made by the first writer where missing.
    :param keep: whole versions to keep, the latest among them.
    """

    topic_ids: Mapping[str, str] = MappingProxyType({})
    """What the offsets of new versions are of; set once it is known, before the first :meth:`publish`."""

    def __init__(self, directory: Path, keep: int = 3, disk: Disk | None = None) -> None:
        if keep < 1:
            raise ValueError(f"A store keeps at least one version; found keep = {keep}.")
        self.directory = directory
        self.keep = keep
        self._disk = disk or Disk()
        self._lock = WriterLock(directory / LOCK)

    # --- reading ---

    def versions(self) -> list[int]:
        """The versions up to the latest, oldest first, damaged ones included."""
        return self._view()[1]

    def latest_version(self) -> int | None:
        """The version that counts; None in an empty or missing store."""
        versions = self.versions()
        return versions[-1] if versions else None

    def path(self, version: int) -> Path:
        """The folder of a version."""
        return self.directory / f"v{version:08d}"

    def manifest(self, version: int) -> Manifest:
        """The manifest of a version.

        :raises NoSnapshotError: there is no such version.
        :raises SnapshotDamagedError: its manifest cannot be used.
        """
        return self._folder(version).manifest()

    def load(
        self,
        version: int | None = None,
        groups: Collection[str] | None = None,
        states: Collection[str] | None = None,
    ) -> Snapshot:
        """Load a version, or the newest whole one; checksums of all that is loaded are verified.

        :param groups: names of the array groups to load; None: all.
        :param states: names of the states to load; None: all.
        :returns: arrays that own their memory and can be written to.
        :raises NoSnapshotError: no such version, or none at all: a fresh start.
        :raises SnapshotDamagedError: this version, or every version, is damaged: no fresh start without a person.
        """
        if version is not None:
            return self._folder(version).load(groups, states)
        for _ in range(_RETRIES):
            # A version can be deleted while it is read, by a writer that went on. Then there is a newer one.
            with contextlib.suppress(VanishedError):
                found = self._load_newest(groups, states)
                for skipped in found.skipped:
                    log.warning("%s Using v%08d instead.", skipped.problem, found.manifest.version)
                return found
        raise SnapshotError(f"{self.directory}: versions vanish faster than they can be read; raise snapshot.keep.")

    def deltas(self, version: int, after: int, groups: Collection[str] | None = None) -> Iterator[Snapshot]:
        """The deltas of a version behind the ``after``-th, in order, each verified; none once the version is gone.

        :param groups: names of the array groups to load, all of which a delta must have; None: those it has.
        :raises SnapshotDamagedError: one is damaged, or missing before later ones; those before it were given.
        """
        try:
            numbers = _numbers(self.path(version))
            last = max(numbers, default=0)
            for number in range(after + 1, last + 1):
                name = _delta_path(self.path(version), number).name
                if number not in numbers:
                    raise SnapshotDamagedError(version, name, "missing, though later ones are there")
                try:
                    yield VersionFolder(self.path(version) / name, version, number).load(groups, ())
                except SnapshotDamagedError as error:
                    raise SnapshotDamagedError(version, f"{name}/{error.file}", error.problem) from error
        except (FileNotFoundError, VanishedError):
            return
        except OSError as error:
            raise SnapshotDamagedError(version, self.path(version).name, error.strerror or str(error)) from error

    def verify(self, version: int, *, quick: bool = False) -> list[str]:
        """What is wrong with a version, a line per file; empty where it is whole.

        :param quick: look at the manifest and the sizes only.
        :raises NoSnapshotError: there is no such version.
        """
        return self._folder(version).verify(quick=quick)

    def _folder(self, version: int) -> VersionFolder:
        return VersionFolder(self.path(version), version)

    def _load_newest(self, groups: Collection[str] | None, states: Collection[str] | None) -> Snapshot:
        named, versions = self._view()
        errors: list[SnapshotDamagedError] = []
        if named is not None and named not in versions:
            errors.append(SnapshotDamagedError(named, f"v{named:08d}", f"missing, though {LATEST} names it"))
        for version in reversed(versions):
            try:
                loaded = self._folder(version).load(groups, states)
            except SnapshotDamagedError as error:
                errors.append(error)
            else:
                return replace(loaded, skipped=tuple(Skipped(error.version, str(error)) for error in errors))
        if not errors:
            raise NoSnapshotError(f"{self.directory} has no snapshot yet.")
        newest = errors[0]
        raise SnapshotDamagedError(
            newest.version, newest.file, f"{newest.problem}; no whole version in {self.directory} to fall back to"
        )

    def _view(self) -> tuple[int | None, list[int]]:
        """What ``LATEST`` names, and the versions up to it, both from the same moment."""
        named = self._named_latest()
        for _ in range(_RETRIES):
            present = sorted(
                int(match[1])
                for name in self._listing()
                if (match := _VERSION.fullmatch(name)) and _is_folder(self.directory / name)
            )
            before, named = named, self._named_latest()
            if named == before:
                break
        return named, [version for version in present if named is None or version <= named]

    def _listing(self) -> list[str]:
        try:
            return [path.name for path in self.directory.iterdir()]
        except FileNotFoundError:
            return []

    def _named_latest(self) -> int | None:
        """The version in ``LATEST``; None where the file is missing or damaged."""
        latest = self.directory / LATEST
        try:
            text = latest.read_bytes() if regular_size(latest) == len(_latest_text(1)) else b""
        except OSError:
            return None
        match = _VERSION.match(text.decode("ascii", "replace"))
        if match is None or text != _latest_text(int(match[1])):
            log.warning("%s is damaged; taking the newest version there is.", latest)
            return None
        return int(match[1])

    # --- writing ---

    def acquire(self) -> None:
        """Become the one writer, and clear what a dead one left.

        :raises SnapshotLockedError: another process is; the message names it.
        """
        if self._lock.held:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        holder = self._lock.acquire()
        if holder is not None:
            raise SnapshotLockedError(self.directory, holder)
        try:
            self._clear()
        except OSError:
            self._lock.release()  # who has not cleared may not write
            raise

    def _clear(self) -> None:
        # Behind the new token in LOCK: whatever its former holder may still mean to rename is gone (`_rename`).
        for name in self._listing():
            if name.endswith(TEMPORARY) and _ANY_VERSION.fullmatch(name):
                log.info("Removing %s, left by a run that ended early.", name)
                self._disk.remove(self.directory / name)
            elif name.startswith(LATEST) and name.endswith(TEMPORARY):
                (self.directory / name).unlink(missing_ok=True)
        # Above LATEST lies what a publish did not finish or a rollback did not set aside: neither may come back.
        latest = self._named_latest()
        if latest is not None:
            self._set_aside_above(latest)

    def release(self) -> None:
        """Let another process write; doing so twice is fine."""
        self._lock.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def publish(
        self,
        groups: Mapping[str, Mapping[str, NDArray[Any]]],
        states: Mapping[str, object],
        *,
        created_ms: int,
        event_time_ms: int,
        n_events: int,
        offsets: Offsets,
        settings_fingerprint: str,
        tasks: Sequence[str],
        layout: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write a new version and make it the latest. The order is what makes it safe:

        1. every file into ``vN.tmp``, each synced; the manifest last; then the folder synced;
        2. the folder renamed to ``vN``, its parent synced;
        3. ``LATEST`` written beside, synced, renamed, the parent synced;
        4. only then versions beyond ``keep`` deleted, and the deltas of the others before this one.

        :param groups: arrays by group and name: bool, integers, floats, of any shape.
        :param states: plain msgpack types by name.
        :param created_ms: wall clock, milliseconds since the epoch.
        :raises ValueError: a name, array or state that cannot be stored; nothing was written.
        :raises OSError: the disk failed. The latest version is whole, be it the one before or the new one.
        :raises SnapshotLockedError: another process writes.
        :raises SnapshotSupersededError: another process has become the writer.
        """
        encoded = {file_name(name, STATE): encode_state(name, state) for name, state in states.items()}
        checked = {file_name(name, GROUP): check_group(name, arrays) for name, arrays in groups.items()}
        self.acquire()
        self._check_owner()
        number = self._next_version()
        manifest = Manifest(
            library=_library_version(),
            version=number,
            created_ms=created_ms,
            event_time_ms=event_time_ms,
            n_events=n_events,
            offsets=encode_offsets(offsets),
            topic_ids=dict(self.topic_ids),
            settings_fingerprint=settings_fingerprint,
            tasks=list(tasks),
            layout=dict(layout or {}),
            settings=dict(settings or {}),
            files={},
        )
        encode_manifest(manifest)  # a layout that is not JSON shows before anything is written
        contents = [(file, encode_group(arrays)) for file, arrays in checked.items()]
        try:
            manifest = self._write_version(manifest, contents, encoded)
            self._point_to(number)
        except OSError:
            self._check_owner()  # who takes over removes what is being written
            self._discard(number)
            raise
        self._delete_old()
        return manifest

    def publish_delta(
        self,
        base: Manifest,
        groups: Mapping[str, Mapping[str, NDArray[Any]]],
        *,
        created_ms: int,
        event_time_ms: int,
    ) -> Manifest:
        """Add a delta behind the latest version, whole or not at all; it goes when a later version comes.

        Nothing resumes from a delta, so nothing waits for the disk: one that a power failure tears shows by its
        checksums.

        :param base: the manifest of the version, or of the delta before.
        :raises OSError: the disk failed; the version and its earlier deltas stay as they are.
        """
        checked = {file_name(name, GROUP): check_group(name, arrays) for name, arrays in groups.items()}
        folder = _delta_path(self.path(base.version), base.delta + 1)
        temporary = folder.with_name(f"{folder.name}{TEMPORARY}")
        manifest = msgspec.structs.replace(
            base,
            delta=base.delta + 1,
            created_ms=created_ms,
            event_time_ms=event_time_ms,
        )
        files: dict[str, FileEntry] = {}
        self._disk.make_folder(temporary)
        for file, arrays in checked.items():
            parts = encode_group(arrays)
            self._disk.write(temporary / file, parts, synced=False)
            files[file] = file_entry(parts, quick=True)
        manifest = msgspec.structs.replace(manifest, files=files)
        self._disk.write(temporary / MANIFEST, [encode_manifest(manifest)], synced=False)
        self._rename(temporary, folder)
        return manifest

    def rollback(self, version: int) -> Manifest:
        """Make an older version the latest, for the learner and the scorers; newer ones are set aside, not deleted.

        Numbers go on above all that are there, set aside ones included, so that no two snapshots share one; above the
        last there can be (99,999,999) none is left, and one that is free below is taken.

        :raises NoSnapshotError: there is no such version.
        :raises SnapshotDamagedError: it is not whole.
        :raises SnapshotLockedError: a learner is running; stop it first.
        """
        self.acquire()
        manifest = self._folder(version).load(None, None).manifest
        self._drop_deltas(version)  # a version as it was published
        # LATEST first: from here on nobody loads a newer one, and `acquire` finishes what a crash leaves undone.
        self._point_to(version)
        self._set_aside_above(version)
        return manifest

    def _write_version(
        self, manifest: Manifest, groups: Iterable[tuple[str, list[Part]]], states: Mapping[str, bytes]
    ) -> Manifest:
        folder = self._temporary(manifest.version)
        self._disk.make_folder(folder)
        files: dict[str, FileEntry] = {}
        contents: list[tuple[str, Sequence[Part]]] = [*groups, *((file, [data]) for file, data in states.items())]
        for file, parts in contents:
            self._disk.write(folder / file, parts)
            files[file] = file_entry(parts)
        manifest = msgspec.structs.replace(manifest, files=files)
        self._disk.write(folder / MANIFEST, [encode_manifest(manifest)])
        self._disk.sync_folder(folder)
        self._rename(folder, self.path(manifest.version))
        self._disk.sync_folder(self.directory)
        return manifest

    def _temporary(self, version: int) -> Path:
        return self.directory / f"v{version:08d}.{self._lock.epoch}{TEMPORARY}"

    def _next_version(self) -> int:
        """One above the greatest that is taken; where that is the last there can be, above the next lower gap.

        Nobody publishes so many: a name put there by hand must not make the writer's next one a name that no reader
        knows.
        """
        taken = {int(match[1]) for match in map(_ANY_VERSION.fullmatch, self._listing()) if match}
        taken |= {0, self._named_latest() or 0}
        return max(number for number in taken if number < _LAST_VERSION and number + 1 not in taken) + 1

    def _point_to(self, version: int) -> None:
        beside = self.directory / f"{LATEST}.{self._lock.epoch}{TEMPORARY}"
        self._disk.write(beside, [_latest_text(version)])
        self._rename(beside, self.directory / LATEST)
        self._disk.sync_folder(self.directory)

    def _rename(self, ready: Path, final: Path) -> None:
        """Publish what lies ready under a temporary name that only this writer uses.

        A writer that was superseded cannot. Its successor first puts its token into ``LOCK``, then removes all
        temporary names. What was ready before that is gone, even if this process stood still behind the check; what
        became ready after it does not pass the check (ADR 16).
        """
        self._check_owner()
        self._disk.rename(ready, final)

    def _check_owner(self) -> None:
        owner = self._lock.superseded_by
        if owner is not None:
            raise SnapshotSupersededError(
                f"{self.directory} was taken from this process (pid {os.getpid()}): {LOCK} names {owner}. Nothing more "
                "is published here; who writes now learns from the last snapshot on. Start again with `--standby`."
            )

    def _set_aside_above(self, latest: int) -> None:
        for name in self._listing():
            match = _VERSION.fullmatch(name)
            if match and int(match[1]) > latest:
                log.warning("Setting aside %s: the version that counts is %d.", name, latest)
                self._disk.rename(self.directory / name, self.directory / f"{name}{ROLLED_BACK}")
        self._disk.sync_folder(self.directory)

    def _discard(self, version: int) -> None:
        """Free the disk of a version that could not be finished: on a full disk every try would leave one."""
        with contextlib.suppress(OSError):
            if self.path(version).exists() and self._named_latest() != version:
                self._disk.rename(self.path(version), self._temporary(version))
            if self._temporary(version).exists():
                self._disk.remove(self._temporary(version))

    def _delete_old(self) -> None:
        versions = self.versions()
        for version in versions[:-1]:
            try:
                if version in versions[: -self.keep]:
                    # Renamed first: a reader finds a version whole or not at all.
                    self._disk.rename(self.path(version), self._temporary(version))
                    self._disk.remove(self._temporary(version))
                else:
                    self._drop_deltas(version)
            except OSError as error:
                # The new version is safe on the disk; that an old one stays is no reason to fail.
                log.warning("Version %d cannot be deleted: %s", version, error)

    def _drop_deltas(self, version: int) -> None:
        """What lies between a version and a later one: nobody follows it any more, and a rollback goes behind it."""
        for number in sorted(_numbers(self.path(version)), reverse=True):  # so that a reader finds no gap
            folder = _delta_path(self.path(version), number)
            temporary = folder.with_name(f"{folder.name}{TEMPORARY}")
            self._disk.rename(folder, temporary)
            self._disk.remove(temporary)


def _is_folder(path: Path) -> bool:
    """Of this directory, that is: a link leads elsewhere."""
    return not path.is_symlink() and path.is_dir()


def _numbers(folder: Path) -> set[int]:
    """Of the deltas in a version's folder."""
    if folder.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "it is a link")
    return {int(match[1]) for path in folder.iterdir() if (match := _DELTA.fullmatch(path.name))}


def _delta_path(folder: Path, number: int) -> Path:
    return folder / f"delta-{number:06d}"


def _latest_text(version: int) -> bytes:
    # With a checksum: a flipped bit in a digit could otherwise name another version that exists.
    name = f"v{version:08d}"
    return f"{name} {hashlib.sha256(name.encode()).hexdigest()[:8]}\n".encode()


def _library_version() -> str:
    try:
        return importlib.metadata.version("anabranch")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "0"
