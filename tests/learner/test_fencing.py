"""A writer whose lock was given to another process publishes nothing more, wherever it stood still."""

import errno
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.disk import Disk
from learner.snapshot import LOCK, SnapshotStore, SnapshotSupersededError


def publish(store: SnapshotStore, number: int) -> int:
    manifest = store.publish(
        {"dense": {"w": np.full(4, number, np.float32)}, "table": {"rows": np.full((3, 2), number, np.float32)}},
        {"ingest": {"number": number}},
        created_ms=number,
        event_time_ms=number,
        n_events=number,
        offsets={("events", 0): number},
        settings_fingerprint="f",
        tasks=["click"],
    )
    return manifest.version


def lose_the_lock(directory: Path) -> None:
    """What a network file system does to who is silent for too long: the next one gets the lock.

    The old lock stays with its process, on a file that has no name any more; the new file has the old one's text.
    """
    text = (directory / LOCK).read_bytes()
    (directory / LOCK).unlink()
    (directory / LOCK).write_bytes(text)


class StandingStill(Disk):
    """Before its n-th call from now on, something else happens; the call itself is made afterwards."""

    def __init__(self, at_call: int, meanwhile: Any) -> None:
        self.n_calls = 0
        self._at_call = at_call
        self._meanwhile = meanwhile

    def __getattribute__(self, name: str) -> Any:
        if name in {"write", "make_folder", "sync_folder", "rename", "remove"}:
            self.n_calls += 1
            if self.n_calls == self._at_call:
                self._meanwhile()
        return super().__getattribute__(name)


N_CALLS = 13  # of a publish that deletes an old version


@pytest.mark.parametrize("at_call", range(1, N_CALLS + 1))
def test_whoever_stood_still_in_a_publish_while_another_took_over_changes_nothing(tmp_path: Path, at_call: int) -> None:
    successor = SnapshotStore(tmp_path, keep=2)
    found: list[int] = []

    def take_over() -> None:
        lose_the_lock(tmp_path)
        successor.acquire()
        found.append(successor.load().manifest.n_events)
        publish(successor, 10)

    disk = StandingStill(0, take_over)
    owner = SnapshotStore(tmp_path, keep=2, disk=disk)
    publish(owner, 1)
    publish(owner, 2)
    disk.n_calls, disk._at_call = 0, at_call
    with suppress(SnapshotSupersededError):
        publish(owner, 3)
    # Either the owner's version was out before the successor looked, or it never comes out.
    assert found in ([2], [3])
    after = successor.load()
    assert (after.manifest.n_events, after.skipped) == (10, ())
    with pytest.raises(SnapshotSupersededError, match=r"LOCK names process .*--standby"):
        publish(owner, 4)
    for number in (11, 12):
        publish(successor, number)
    assert disk.n_calls >= at_call
    for version in successor.versions():
        assert successor.verify(version) == []
    assert successor.load().manifest.n_events == 12
    assert [successor.load(version).manifest.n_events for version in successor.versions()] == [11, 12]


def test_a_publish_makes_as_many_calls_as_are_tried(tmp_path: Path) -> None:
    disk = StandingStill(0, None)
    store = SnapshotStore(tmp_path, keep=2, disk=disk)
    publish(store, 1)
    publish(store, 2)
    disk.n_calls = 0
    publish(store, 3)
    assert disk.n_calls == N_CALLS


def test_who_could_not_clear_what_was_left_does_not_write(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.ENOTEMPTY, "somebody still writes there")

    (tmp_path / "v00000001.1.tmp").mkdir()
    store = SnapshotStore(tmp_path, disk=StandingStill(1, fail))
    with pytest.raises(OSError, match="still writes"):
        store.acquire()
    assert (tmp_path / "v00000001.1.tmp").exists()
    publish(store, 1)
    assert not (tmp_path / "v00000001.1.tmp").exists()


def test_each_writer_has_a_higher_number_also_after_a_restart(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with SnapshotStore(tmp_path):
            assert (tmp_path / LOCK).read_text().startswith(f"{number} process ")


def test_a_lock_file_of_an_older_release_is_read(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("process 77 on elsewhere\n")
    with SnapshotStore(tmp_path) as store:
        assert publish(store, 1) == 1


def test_a_lock_file_that_was_removed_is_told(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    publish(store, 1)
    (tmp_path / LOCK).unlink()
    with pytest.raises(SnapshotSupersededError, match="LOCK names nobody, it was removed"):
        publish(store, 2)


def test_whoever_lost_the_lock_adds_no_delta_to_a_version(tmp_path: Path) -> None:
    owner, successor = SnapshotStore(tmp_path), SnapshotStore(tmp_path)
    publish(owner, 1)
    base, groups = owner.manifest(1), {"dense": {"w": np.zeros(4, np.float32)}}
    base = owner.publish_delta(base, groups, created_ms=2, event_time_ms=2)
    lose_the_lock(tmp_path)
    successor.acquire()
    with pytest.raises(SnapshotSupersededError, match="was taken from this process"):
        owner.publish_delta(base, groups, created_ms=3, event_time_ms=3)
    assert [path.name for path in sorted(owner.path(1).glob("delta-*")) if path.suffix != ".tmp"] == ["delta-000001"]
