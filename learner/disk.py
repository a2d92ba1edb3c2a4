"""What the snapshot store does to the disk, and the lock that keeps it the only one that does."""

import fcntl
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

Part = bytes | memoryview
"""Some of a file's bytes."""


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
    """An advisory lock on a file; it ends with the process that holds it, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> str | None:
        """Take the lock, once; where another holds it, its name."""
        if self._descriptor is not None:
            return None
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 256, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            return holder or "an unknown process"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor
        return None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def release(self) -> None:
        """Let another process have it; doing so twice is fine."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
