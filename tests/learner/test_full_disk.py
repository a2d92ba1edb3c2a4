"""Writes that the system itself refuses: a file system that is full, and a limit on a file's size."""

import contextlib
import errno
import os
import resource
import subprocess

import numpy as np
import pytest

from learner.snapshot import SnapshotStore

ROWS = np.arange(32_000, dtype=np.int32)  # 125 KiB


def publish(store, number):
    groups = {"first": {"rows": ROWS + number}, "second": {"rows": ROWS - number}}
    return store.publish(
        groups,
        {"learner": {"n": number}},
        created_ms=0,
        event_time_ms=0,
        n_events=number,
        offsets={("events", 0): number},
        settings_fingerprint="",
        tasks=(),
    )


@contextlib.contextmanager
def full_file_system(folder):
    """A file system of 1 MiB in memory, which a file fills so that half a snapshot still fits."""
    ballast = folder / "ballast"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    ballast.write_bytes(bytes(free - 180_000))
    yield
    ballast.unlink()


@contextlib.contextmanager
def limit_on_files(_):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["full file system", "limit on files"])
def small(request, tmp_path):
    """A folder, what makes its writes fail for a while, and the error's number."""
    if request.param == "limit on files":
        yield tmp_path, limit_on_files, errno.EFBIG
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system of a chosen size needs the right to mount")
    yield tmp_path, full_file_system, errno.ENOSPC
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_refused_write_keeps_the_version_before_leaves_nothing_behind_and_the_next_one_works(small):
    folder, refusing, number = small
    with SnapshotStore(folder / "snapshots", keep=2) as store:
        publish(store, 1)
        for _ in range(3):  # what one try left behind would be missing in the next
            with refusing(folder):
                with pytest.raises(OSError, match=os.strerror(number)):
                    publish(store, 2)
                assert store.load().manifest.n_events == 1
            assert sorted(path.name for path in store.directory.iterdir()) == ["LATEST", "LOCK", "v00000001"]
        publish(store, 3)
        found = store.load()
        assert found.manifest.resume_offsets == {("events", 0): 3}
        np.testing.assert_array_equal(found.groups["second"]["rows"], ROWS - 3)
        assert store.verify(found.manifest.version) == []
