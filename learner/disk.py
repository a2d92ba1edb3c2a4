"""What the snapshot store does to the disk, and the lock that keeps it the only one that does."""

import fcntl
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

Part = bytes | memoryview
"""Some of a file's bytes."""
_TOKEN_BYTES = 512
_MOST_DIGITS = 15  # more would make names of files that are too long for a disk


class Disk:
    """Each call is on the disk for good when it returns; a rename, once its folder is synced.

    Tests give the store one that fails.
    """

    def write(self, path: Path, parts: Sequence[Part], *, synced: bool = True) -> None:
        """Write a file, part after part, and wait until it is on the disk, unless it may be lost."""
        with path.open("wb") as file:
            for part in parts:
                file.write(part)
            if synced:
                file.flush()
                os.fsync(file.fileno())

    def make_folder(self, path: Path) -> None:
        """Make an empty folder."""
        path.mkdir()

    def sync_folder(self, path: Path) -> None:
        """Wait until the folder's names are on the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file over another, or a folder to a free name."""
        old.rename(new)

    def remove(self, folder: Path) -> None:
        """Remove a folder with all in it."""
        shutil.rmtree(folder)


class WriterLock:
    """An advisory lock on a file; it ends with the process that holds it, however that ends.

    The file's text is the holder's token: a number that grows with every holder, and the holder's name. A file system
    on a network can give the lock of a process that was silent too long to another one; the token tells (ADR 16).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._token = ""
        self.epoch = 0
        """How many have held the lock up to this object."""

    def acquire(self) -> str | None:
        """Take the lock, once; where another holds it, its name."""
        if self._descriptor is not None:
            return None
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        epoch, holder = _parse(os.pread(descriptor, _TOKEN_BYTES, 0))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return holder or "an unknown process"
        epoch, _ = _parse(os.pread(descriptor, _TOKEN_BYTES, 0))
        self.epoch = epoch + 1
        self._token = f"{self.epoch} process {os.getpid()} on {socket.gethostname()}\n"
        # In this order the file is never empty: its number must not start again.
        written = os.pwrite(descriptor, self._token.encode(), 0)
        os.ftruncate(descriptor, written)
        os.fsync(descriptor)
        self._descriptor = descriptor
        return None

    @property
    def held(self) -> bool:
        """Whether this object took the lock."""
        return self._descriptor is not None

    @property
    def superseded_by(self) -> str | None:
        """The name of who has taken the lock since; None while it is this object's."""
        try:
            found = self._path.read_bytes()
        except FileNotFoundError:
            return "nobody, it was removed"
        return None if found == self._token.encode() else _parse(found)[1] or "an unknown process"

    def release(self) -> None:
        """Let another process have it; doing so twice is fine."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _parse(token: bytes) -> tuple[int, str]:
    """Number and name in a token; 0 and what there is where it has no number."""
    number, _, name = token.decode("utf-8", "replace").strip().partition(" ")
    is_number = number.isdecimal() and len(number) <= _MOST_DIGITS
    return (int(number), name) if is_number else (0, f"{number} {name}".strip())
