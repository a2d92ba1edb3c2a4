"""Damage to what `anabranch learn` left on the disk: the version before is used, and what is damaged is named."""

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from learner.snapshot import LATEST, SnapshotDamagedError, SnapshotStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def learned(straight, tmp_path_factory):
    """A flow of a learner that was killed behind two versions and a delta; nobody writes to it."""
    flow = type(straight.flow)(tmp_path_factory.mktemp("learned"))
    flow.configure(straight.stream, every_events=2_000)
    often = {"ANABRANCH__SNAPSHOT__DELTA_SECONDS": "0.01", "ANABRANCH__SNAPSHOT__KEEP": "2"}
    with flow.start("learn", "-c", flow.config, environment=often) as run:
        run.until(lambda: run.consumed() == len(straight.stream.events))
        run.until(lambda: list(flow.snapshots.glob("v00000002/delta-000001")))
        run.kill()
    return flow


@pytest.fixture
def damaged(learned):
    """A copy that may be damaged: its store. Not in a folder of pytest's, which nobody else may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield SnapshotStore(Path(shutil.copytree(learned.snapshots, Path(folder) / "snapshots")))


def cut_short(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def remove(path):
    path.unlink()


def make_unreadable(path):
    path.chmod(0)


def repair(path, data):
    path.touch()
    path.chmod(0o644)
    path.write_bytes(data)


def files_in(folder):
    return [path for path in sorted(folder.iterdir()) if path.is_file()]


DAMAGE = (cut_short, flip_a_bit, remove, make_unreadable)


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_file_of_the_newest_version_when_damaged_is_named_and_the_version_before_is_used(
    damage, damaged, as_a_user_whom_rights_concern
):
    before, files = damaged.load(1), files_in(damaged.path(2))
    assert {"manifest.json", "table.safetensors", "profiles.safetensors", "learner.msgpack"} < {
        one.name for one in files
    }
    for file in files:
        data = file.read_bytes()
        damage(file)
        with as_a_user_whom_rights_concern():
            found = damaged.load()
        assert found.manifest == before.manifest
        assert found.states == before.states
        [(version, problem)] = found.skipped
        assert version == 2
        assert f"v00000002 is damaged: {file.name}: " in problem
        assert (os.strerror(errno.EACCES) in problem) == (damage is make_unreadable)
        repair(file, data)
    assert damaged.load().manifest.version == 2, "whole again"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_latest_is_told_and_the_newest_version_is_used(
    damage, damaged, caplog, as_a_user_whom_rights_concern
):
    damage(damaged.directory / LATEST)
    with as_a_user_whom_rights_concern():
        assert damaged.load().manifest.version == 2
    assert (f"{damaged.directory / LATEST} is damaged" in caplog.text) == (damage in (cut_short, flip_a_bit))


def test_a_version_folder_that_is_gone_or_a_file_or_closed_to_us_is_named(damaged, as_a_user_whom_rights_concern):
    folder = damaged.path(2)
    folder.chmod(0)
    with as_a_user_whom_rights_concern():
        found = damaged.load()
    assert found.manifest.version == 1
    assert "v00000002" in found.skipped[0].problem
    folder.chmod(0o755)
    shutil.rmtree(folder)
    folder.touch()
    for _ in range(2):
        found = damaged.load()
        assert found.manifest.version == 1
        assert "v00000002: missing, though LATEST names it" in found.skipped[0].problem
        folder.unlink(missing_ok=True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_file_of_a_delta_when_damaged_is_named_and_the_version_is_as_before(
    damage, damaged, as_a_user_whom_rights_concern
):
    files = files_in(damaged.path(2) / "delta-000001")
    assert {"manifest.json", "table.safetensors", "profiles.safetensors"} < {one.name for one in files}
    for file in files:
        data = file.read_bytes()
        damage(file)
        with as_a_user_whom_rights_concern():
            assert damaged.load().skipped == ()
            with pytest.raises(SnapshotDamagedError, match=re.escape(f"delta-000001/{file.name}: ")):
                list(damaged.deltas(2, 0))
        repair(file, data)
    assert [delta.manifest.delta for delta in damaged.deltas(2, 0)][:1] == [1]


def test_learn_says_which_file_is_damaged_goes_on_from_the_version_before_and_ends_in_the_same_state(
    learned, straight, flow, same_state
):
    shutil.copytree(learned.snapshots, flow.snapshots)
    flow.configure(straight.stream, every_events=2_000)
    flip_a_bit(flow.snapshots / "v00000002" / "table.safetensors")
    output = flow.learn_to_the_end()
    assert re.search(r"Snapshot v00000002 is damaged: table\.safetensors: .* Using v00000001 instead\.", output)
    assert re.search(r"Learning `.*: snapshot v00000001, \d+ events\.", output)
    same_state(flow.newest(), straight.flow.newest())
