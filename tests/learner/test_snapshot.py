"""The snapshot store under damage, crashes, rollback, locks and readers that come at the wrong moment."""

import errno
import hashlib
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from contracts.manifest import FileEntry, decode_manifest, encode_manifest
from learner.disk import Disk
from learner.snapshot import (
    LATEST,
    ROLLED_BACK,
    TEMPORARY,
    NoSnapshotError,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotLockedError,
    SnapshotStore,
)

OFFSETS = {("events", 0): 10, ("events", 1): 20}


def content(number):
    groups = {
        "dense": {"weight": np.full((3, 2), number, np.float32), "step": np.array(number, np.int64)},
        "table": {"rows": np.full((number % 3, 4), number, np.float32), "used": np.array([True, False])},
    }
    return groups, {"detectors": {"n": number, "window": b"\0\1"}, "rng": [number, 2.5, None]}


def publish(store, number, **more):
    meta = {
        "created_ms": 1000 + number,
        "event_time_ms": 2000 + number,
        "n_events": number,
        "offsets": OFFSETS,
        "settings_fingerprint": "f" * 16,
        "tasks": ("click",),
        "layout": {"width": 2},
    }
    return store.publish(*content(number), **{**meta, **more})


def check(snapshot, number):
    """The snapshot holds what was published with this number, all of it from one version."""
    groups, states = content(number)
    assert snapshot.manifest.n_events == number
    assert snapshot.states == states
    assert {group: set(arrays) for group, arrays in snapshot.groups.items()} == {
        group: set(arrays) for group, arrays in groups.items()
    }
    for group, arrays in groups.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(snapshot.groups[group][name], array, strict=True)


@pytest.fixture
def store(tmp_path):
    with SnapshotStore(tmp_path / "snapshots", keep=3) as made:
        yield made


def files_of(store, version):
    return sorted(path.name for path in store.path(version).iterdir())


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


# --- what goes in comes out ---


def test_what_is_published_is_loaded(store):
    manifest = publish(store, 5)
    snapshot = store.load()
    check(snapshot, 5)
    assert snapshot.skipped == ()
    assert snapshot.manifest == manifest == store.manifest(1)
    assert manifest.version == store.latest_version() == 1
    assert manifest.resume_offsets == OFFSETS
    assert (manifest.created_ms, manifest.event_time_ms, manifest.tasks) == (1005, 2005, ["click"])
    assert store.verify(1) == store.verify(1, quick=True) == []


@pytest.mark.parametrize(
    "array",
    [
        np.array(3, np.int64),
        np.array(2.5, np.float32),
        np.empty((0, 7), np.float32),
        np.array([True, False, True]),
        np.array([-(1 << 63), (1 << 63) - 1], np.int64),
        np.array([np.nan, np.inf, -0.0], np.float32),
        np.arange(12, dtype=np.int32).reshape(3, 4).T,
        np.arange(20, dtype=np.float64)[::3],
        np.arange(4, dtype=">i4"),
        np.arange(4, dtype=np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_an_array_of_any_shape_order_and_type_survives_and_can_be_written_to(store, array):
    publish_with(store, {"group": {"array": array}}, {})
    loaded = store.load().groups["group"]["array"]
    np.testing.assert_array_equal(loaded, array)
    assert loaded.shape == array.shape
    assert loaded.dtype == array.dtype.newbyteorder("=")
    loaded[...] = 0


def publish_with(store, groups, states):
    return store.publish(
        groups, states, created_ms=0, event_time_ms=0, n_events=0, offsets={}, settings_fingerprint="", tasks=()
    )


def test_only_the_groups_and_states_asked_for_are_read(store):
    publish(store, 1)
    (store.path(1) / "table.safetensors").write_bytes(b"damaged")
    snapshot = store.load(groups=["dense"], states=[])
    assert set(snapshot.groups) == {"dense"}
    assert snapshot.states == {}
    with pytest.raises(SnapshotDamagedError, match=r"no file other\.safetensors"):
        store.load(1, groups=["other"])


@pytest.mark.parametrize(
    ("groups", "states", "says"),
    [
        ({"../up": {}}, {}, r"\.\./up"),
        ({}, {"Upper": 1}, "Upper"),
        ({"g": {"a": np.array(["text"])}}, {}, "g.a"),
        ({"g": {"a": np.array([1j])}}, {}, "complex128"),
        ({}, {"s": np.zeros(3).dtype}, "state `s`"),
        ({}, {"s": 1 << 70}, "state `s`"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(store, groups, states, says):
    before = names_in(store.directory)
    with pytest.raises(ValueError, match=says):
        publish_with(store, groups, states)
    assert names_in(store.directory) == before


def test_an_empty_or_missing_store_says_so(tmp_path):
    store = SnapshotStore(tmp_path / "nowhere")
    assert store.versions() == []
    assert store.latest_version() is None
    with pytest.raises(NoSnapshotError, match="no snapshot yet"):
        store.load()
    with pytest.raises(NoSnapshotError, match="no snapshot 3"):
        store.load(3)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ValueError, match="found keep = 0"):
        SnapshotStore(tmp_path, keep=0)


# --- keep ---


def test_the_newest_versions_are_kept_and_older_ones_deleted(store):
    for number in range(1, 7):
        publish(store, number)
    assert store.versions() == [4, 5, 6]
    assert names_in(store.directory) == [LATEST, "LOCK", "v00000004", "v00000005", "v00000006"]


def test_keep_one_keeps_the_latest(tmp_path):
    with SnapshotStore(tmp_path, keep=1) as store:
        for number in (1, 2, 3):
            publish(store, number)
            check(store.load(), number)
        assert store.versions() == [3]


# --- damage ---


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    place = random.Random(path.name).randrange(len(data) - 1)
    data[place] ^= 0x10
    path.write_bytes(data)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_another(path):
    shutil.copy(path.parent.parent / "v00000001" / path.name, path)


ALL_FILES = ["dense.safetensors", "table.safetensors", "detectors.msgpack", "rng.msgpack", "manifest.json"]


def test_the_files_that_are_damaged_below_are_all_there_are(store):
    publish(store, 1)
    assert files_of(store, 1) == sorted(ALL_FILES)


@pytest.mark.parametrize("damage", [truncate, empty, flip, os.unlink, replace_by_folder, replace_by_another])
@pytest.mark.parametrize("file", ALL_FILES)
def test_a_damaged_file_is_reported_and_the_version_before_is_used(store, file, damage, caplog):
    for number in (1, 2, 3):
        publish(store, number)
    damage(store.path(3) / file)
    with caplog.at_level(logging.WARNING):
        snapshot = store.load()
    check(snapshot, 2)
    [(version, problem)] = snapshot.skipped
    assert version == 3
    assert file in problem
    assert file in caplog.text
    assert "v00000003" in caplog.text
    [line] = store.verify(3)
    assert line.startswith(file)
    with pytest.raises(SnapshotDamagedError) as caught:
        store.load(3)
    assert (caught.value.version, caught.value.file) == (3, file)
    assert store.verify(2) == []


@pytest.mark.parametrize("file", ALL_FILES)
def test_a_file_that_may_not_be_read_is_reported_and_the_version_before_is_used(file, as_a_user_whom_rights_concern):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are root's alone
        Path(folder).chmod(0o755)
        with SnapshotStore(Path(folder) / "snapshots", keep=3) as store:
            for number in (1, 2):
                publish(store, number)
        (store.path(2) / file).chmod(0)
        with as_a_user_whom_rights_concern():
            snapshot = store.load()
    check(snapshot, 1)
    [(version, problem)] = snapshot.skipped
    assert version == 2
    assert file in problem
    assert os.strerror(errno.EACCES) in problem


def test_several_damaged_versions_are_all_skipped_and_none_left_is_no_fresh_start(store):
    for number in (1, 2, 3):
        publish(store, number)
    flip(store.path(3) / "rng.msgpack")
    empty(store.path(2) / "manifest.json")
    snapshot = store.load()
    check(snapshot, 1)
    assert [skipped.version for skipped in snapshot.skipped] == [3, 2]
    (store.path(1) / "dense.safetensors").unlink()
    with pytest.raises(SnapshotDamagedError, match="no whole version"):
        store.load()


def forge(store, version, file, data):
    """Put hostile bytes in a file and make every checksum right."""
    path = store.path(version)
    (path / file).write_bytes(data)
    manifest = decode_manifest((path / "manifest.json").read_bytes())
    files = {**manifest.files, file: FileEntry(hashlib.sha256(data).hexdigest(), len(data))}
    (path / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("rng.msgpack", b""),
        ("rng.msgpack", b"\x91" * 100_000),
        ("rng.msgpack", b"\xdd\xff\xff\xff\xff"),
        ("rng.msgpack", b"\x01\x01"),
        ("dense.safetensors", b""),
        ("dense.safetensors", b"\xff" * 64),
        ("dense.safetensors", b"\x02\0\0\0\0\0\0\0[]"),
        ("dense.safetensors", safetensors.numpy.save({"a": np.arange(5)})[:-3]),
        ("dense.safetensors", safetensors.numpy.save({"a": np.arange(5)}).replace(b"I64", b"XYZ")),
        ("dense.safetensors", safetensors.numpy.save({"a": np.arange(5)}).replace(b"[5]", b"[9]")),
    ],
)
def test_hostile_bytes_with_right_checksums_are_damage_too(store, file, data):
    publish(store, 1)
    publish(store, 2)
    forge(store, 2, file, data)
    with pytest.raises(SnapshotDamagedError, match="cannot be read"):
        store.load(2)
    check(store.load(), 1)


def test_the_manifest_of_another_version_is_damage(store):
    publish(store, 1)
    publish(store, 2)
    shutil.rmtree(store.path(2))
    shutil.copytree(store.path(1), store.path(2))
    with pytest.raises(SnapshotDamagedError, match="manifest of version 1"):
        store.load(2)


@pytest.mark.parametrize("text", [None, b"", b"v00000001\n", b"v00000001 00000000\n", b"\xff\xfe", b"v9"])
def test_without_a_whole_latest_file_the_newest_version_counts(store, text):
    publish(store, 1)
    publish(store, 2)
    path = store.directory / LATEST
    path.unlink() if text is None else path.write_bytes(text)
    check(store.load(), 2)
    publish(store, 3)
    assert store.latest_version() == 3


def test_every_flipped_bit_of_latest_is_noticed(store):
    for number in (1, 2, 3):
        publish(store, number)
    path = store.directory / LATEST
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            assert store.latest_version() == 3


def test_a_version_that_latest_names_but_is_gone_is_reported(store):
    publish(store, 1)
    publish(store, 2)
    shutil.rmtree(store.path(2))
    snapshot = store.load()
    check(snapshot, 1)
    assert snapshot.skipped[0].version == 2
    assert "missing" in snapshot.skipped[0].problem
    shutil.rmtree(store.path(1))
    with pytest.raises(SnapshotDamagedError, match="missing"):
        store.load()


# --- crashes ---


class Crash(BaseException):
    """The process dies here: nothing may catch it."""


class FailingDisk(Disk):
    """Fails at the n-th call; half of a file is written before it does."""

    def __init__(self, fail_at, error):
        self.calls = []
        self._fail_at, self._error = fail_at, error

    def _step(self, name):
        self.calls.append(name)
        return len(self.calls) - 1 == self._fail_at

    def write(self, path, parts, **how):
        if self._step(f"write {path.name}"):
            data = b"".join(parts)
            path.write_bytes(data[: len(data) // 2])
            raise self._error
        super().write(path, parts, **how)

    def make_folder(self, path):
        if self._step("make_folder"):
            raise self._error
        super().make_folder(path)

    def sync_folder(self, path):
        if self._step("sync_folder"):
            raise self._error
        super().sync_folder(path)

    def rename(self, old, new):
        if self._step(f"rename {new.name}"):
            raise self._error
        super().rename(old, new)

    def remove(self, folder):
        if self._step("remove"):
            for path in list(folder.iterdir())[:2]:
                path.unlink()
            raise self._error
        super().remove(folder)


def steps_of_a_publish(tmp_path):
    with SnapshotStore(tmp_path / "counted", keep=2) as store:
        publish(store, 1)
        publish(store, 2)
    disk = FailingDisk(-1, Crash())
    with SnapshotStore(tmp_path / "counted", keep=2, disk=disk) as store:
        disk.calls.clear()
        publish(store, 3)
    return disk.calls


def test_the_steps_of_a_publish_are_in_the_order_that_makes_it_safe(tmp_path):
    steps = steps_of_a_publish(tmp_path)
    assert sorted(steps[1:5]) == [f"write {file}" for file in sorted(ALL_FILES) if file != "manifest.json"]
    assert steps[:1] + steps[5:] == [
        "make_folder",
        "write manifest.json",
        "sync_folder",
        "rename v00000003",
        "sync_folder",
        f"write {LATEST}.2{TEMPORARY}",
        f"rename {LATEST}",
        "sync_folder",
        "rename v00000001.2.tmp",
        "remove",
    ]


def test_a_crash_at_any_step_leaves_the_old_or_the_new_version_and_the_next_run_goes_on(tmp_path):
    steps = steps_of_a_publish(tmp_path)
    seen = set()
    for fail_at in range(len(steps)):
        directory = tmp_path / str(fail_at)
        with SnapshotStore(directory, keep=2) as store:
            publish(store, 1)
            publish(store, 2)
        disk = FailingDisk(-1, Crash())
        store = SnapshotStore(directory, keep=2, disk=disk)
        store.acquire()
        disk.calls.clear()
        disk._fail_at = fail_at
        with pytest.raises(Crash):
            publish(store, 3)
        store.release()  # the lock dies with its process

        found = SnapshotStore(directory).load()
        check(found, found.manifest.n_events)
        assert found.skipped == ()
        assert found.manifest.n_events == (3 if fail_at > steps.index(f"rename {LATEST}") else 2)
        seen.add(found.manifest.n_events)

        with SnapshotStore(directory, keep=2) as after:
            assert not [name for name in names_in(directory) if name.startswith("v") and name.endswith(TEMPORARY)]
            assert after.latest_version() == found.manifest.version
            published = publish(after, 4)
            assert published.version > found.manifest.version
            check(after.load(), 4)
            assert all(after.verify(version) == [] for version in after.versions())
    assert seen == {2, 3}


def test_a_failing_disk_is_an_error_that_leaves_nothing_behind_and_the_next_publish_works(tmp_path):
    steps = steps_of_a_publish(tmp_path)
    last = steps.index(f"rename {LATEST}")
    for fail_at in range(len(steps)):
        disk = FailingDisk(-1, OSError(28, "No space left on device"))
        with SnapshotStore(tmp_path / str(fail_at), keep=2, disk=disk) as store:
            publish(store, 1)
            publish(store, 2)
            disk.calls.clear()
            disk._fail_at = fail_at
            if fail_at <= last + 1:
                with pytest.raises(OSError, match="No space left"):
                    publish(store, 3)
            else:
                publish(store, 3)  # only the deletion of an old version failed
            left = [name for name in names_in(store.directory) if name.startswith("v")]
            if fail_at <= last:
                assert left == ["v00000001", "v00000002"]
            check(store.load(), 3 if fail_at > last else 2)
            publish(store, 4)
            check(store.load(), 4)


# --- rollback ---


def test_after_a_rollback_the_older_version_counts_and_numbers_go_on_above(store):
    for number in (1, 2, 3):
        publish(store, number)
    assert store.rollback(1).version == 1
    assert store.versions() == [1]
    check(store.load(), 1)
    assert [name for name in names_in(store.directory) if ROLLED_BACK in name] == [
        "v00000002.rolled-back",
        "v00000003.rolled-back",
    ]
    assert publish(store, 9).version == 4
    assert store.versions() == [1, 4]
    check(store.load(), 9)
    assert len([name for name in names_in(store.directory) if ROLLED_BACK in name]) == 2


def test_a_rollback_to_a_damaged_or_missing_version_changes_nothing(store):
    publish(store, 1)
    publish(store, 2)
    flip(store.path(1) / "rng.msgpack")
    with pytest.raises(SnapshotDamagedError, match=r"rng\.msgpack"):
        store.rollback(1)
    with pytest.raises(NoSnapshotError):
        store.rollback(7)
    assert store.versions() == [1, 2]
    check(store.load(), 2)


def test_a_rollback_that_crashed_is_finished_by_the_next_run(tmp_path):
    with SnapshotStore(tmp_path) as store:
        for number in (1, 2, 3):
            publish(store, number)
    disk = FailingDisk(-1, Crash())
    store = SnapshotStore(tmp_path, disk=disk)
    store.acquire()
    disk.calls.clear()
    disk._fail_at = 3  # the first rename of a newer version
    with pytest.raises(Crash):
        store.rollback(1)
    store.release()
    check(SnapshotStore(tmp_path).load(), 1)
    with SnapshotStore(tmp_path) as after:
        assert after.versions() == [1]
        assert publish(after, 4).version == 4
    assert (tmp_path / "v00000003.rolled-back").is_dir()


def test_a_rollback_of_a_store_whose_writer_runs_is_refused(store):
    publish(store, 1)
    publish(store, 2)
    with pytest.raises(SnapshotLockedError, match=f"process {os.getpid()}"):
        SnapshotStore(store.directory).rollback(1)
    check(store.load(), 2)


# --- one writer, many readers ---

HOLD = """
import sys
from pathlib import Path
from learner.snapshot import SnapshotStore
SnapshotStore(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_names_the_other_process_and_ends_with_it(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        store = SnapshotStore(tmp_path)
        with pytest.raises(SnapshotLockedError, match=f"process {other.pid} on"):
            publish(store, 1)
        other.kill()
        other.wait()
    publish(store, 1)
    store.release()
    store.release()


def test_reading_needs_no_lock(store):
    publish(store, 1)
    check(SnapshotStore(store.directory).load(), 1)


def test_a_reader_beside_a_busy_writer_always_gets_one_whole_version(tmp_path):
    stop = threading.Event()

    def write():
        with SnapshotStore(tmp_path, keep=1) as store:
            number = 1
            while not stop.is_set():
                number += 1
                publish(store, number)

    with SnapshotStore(tmp_path, keep=1) as store:
        publish(store, 1)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        reader, newest, versions = SnapshotStore(tmp_path), 0, set()
        while len(versions) < 15:
            assert writer.is_alive()
            snapshot = reader.load()
            check(snapshot, snapshot.manifest.n_events)
            assert snapshot.skipped == ()
            assert snapshot.manifest.version >= newest
            newest = snapshot.manifest.version
            versions.add(newest)
    finally:
        stop.set()
        writer.join()


def test_a_version_deleted_between_listing_and_reading_is_no_damage(tmp_path, monkeypatch):
    with SnapshotStore(tmp_path, keep=1) as writer:
        publish(writer, 1)
        reader = SnapshotStore(tmp_path)
        folder = reader._folder

        def slow(version):
            if version == 1:
                publish(writer, 2)  # deletes version 1
            return folder(version)

        monkeypatch.setattr(reader, "_folder", slow)
        snapshot = reader.load()
    check(snapshot, 2)
    assert snapshot.skipped == ()


def test_a_file_in_place_of_a_version_is_not_taken_for_one(tmp_path):
    (tmp_path / "v00000001").write_text("not a folder")
    with pytest.raises(NoSnapshotError):
        SnapshotStore(tmp_path).load()


def test_every_error_of_the_store_is_of_one_family():
    for kind in (NoSnapshotError, SnapshotDamagedError, SnapshotLockedError):
        assert issubclass(kind, SnapshotError)


def test_the_store_loads_neither_torch_nor_the_trainer():
    code = "import sys, learner.snapshot; sys.exit(any(name in sys.modules for name in ('torch', 'learner.trainer')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- deltas ---


def publish_delta(store, base):
    groups, _ = content(base.delta + 100)
    return store.publish_delta(base, groups, created_ms=7, event_time_ms=base.event_time_ms + 1)


def test_deltas_come_in_order_behind_their_version_and_go_with_it(store):
    newest = publish(store, 1)
    for _ in range(12):
        newest = publish_delta(store, newest)
    found = list(store.deltas(1, 2))
    assert [delta.manifest.delta for delta in found] == list(range(3, 13))
    for delta in found:
        np.testing.assert_array_equal(delta.groups["dense"]["weight"], np.full((3, 2), delta.manifest.delta + 99))
        assert (delta.manifest.version, delta.manifest.event_time_ms) == (1, 2001 + delta.manifest.delta)
    assert list(store.deltas(1, 12)) == list(store.deltas(2, 0)) == []
    check(store.load(), 1)
    assert store.verify(1) == []
    assert all(entry.xxh3_128 and not entry.sha256 for delta in found for entry in delta.manifest.files.values())
    publish(store, 2)
    assert list(store.deltas(1, 0)) == []
    assert sorted(path.name for path in store.path(1).iterdir()) == sorted([*store.manifest(1).files, "manifest.json"])
    for number in (3, 4):
        publish(store, number)
    assert not store.path(1).exists()


def test_a_reader_between_two_deltas_finds_the_rest_gone_and_no_damage_when_a_version_comes(store):
    newest = publish(store, 1)
    for _ in range(3):
        newest = publish_delta(store, newest)
    reading = store.deltas(1, 0)
    assert next(reading).manifest.delta == 1
    publish(store, 2)
    assert list(reading) == []


def test_a_rollback_goes_to_the_version_as_it_was_published_not_to_its_deltas(store):
    publish_delta(store, publish(store, 1))
    store.rollback(1)
    assert list(store.deltas(1, 0)) == []
    check(store.load(), 1)


@pytest.mark.parametrize("error", [Crash(), OSError(28, "No space left on device")])
def test_a_delta_that_cannot_be_finished_is_not_there(tmp_path, error):
    for fail_at in range(20):
        disk = FailingDisk(-1, error)
        with SnapshotStore(tmp_path / str(fail_at), disk=disk) as store:
            first = publish_delta(store, publish(store, 1))
            disk.calls.clear()
            disk._fail_at = fail_at
            try:
                publish_delta(store, first)
            except (Crash, OSError):
                assert [delta.manifest.delta for delta in store.deltas(1, 0)] == [1]
                check(store.load(), 1)
                continue
        assert [delta.manifest.delta for delta in store.deltas(1, 0)] == [1, 2]
        break
    assert disk.calls == [
        "make_folder",
        "write dense.safetensors",
        "write table.safetensors",
        "write manifest.json",
        "rename delta-000002",
    ]
