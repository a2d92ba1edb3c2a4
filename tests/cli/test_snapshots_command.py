"""`anabranch snapshots` as a person runs it."""

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.snapshots import app
from learner.snapshot import SnapshotStore


@pytest.fixture
def directory(tmp_path):
    with SnapshotStore(tmp_path / "snapshots") as store:
        for number in (1, 2, 3):
            store.publish(
                {"dense": {"weight": np.full(4, number, np.float32)}},
                {"rng": number},
                created_ms=1_700_000_000_000,
                event_time_ms=1_600_000_000_000,
                n_events=1000 + number,
                offsets={("events", 0): 500, ("events", 1): 501},
                settings_fingerprint="",
                tasks=("click",),
            )
    return tmp_path / "snapshots"


def run(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(one) for one in arguments])


def damage(directory, version):
    (directory / f"v{version:08d}" / "dense.safetensors").write_bytes(b"x")


def test_list_shows_the_newest_first_with_time_events_and_offsets(directory):
    result = run("list", "-d", directory)
    assert result.exit_code == 0
    rows = [line for line in result.output.splitlines() if "1600000000" in line or "2020-09-13" in line]
    assert ["1003" in rows[0], "1002" in rows[1], "1001" in rows[2]] == [True] * 3
    assert "latest" in rows[0]
    assert "ok" in rows[1]
    assert "2023-11-14 22:13:20" in rows[0]
    assert "events: 1001 in 2 partitions" in rows[0]


def test_list_tells_of_damage_and_of_an_empty_store(directory, tmp_path):
    damage(directory, 2)
    assert "damaged: dense.safetensors: 1 bytes" in run("list", "-d", directory).output
    result = run("list", "-d", tmp_path / "none")
    assert result.exit_code == 0
    assert "No snapshots" in result.output


def test_verify_ends_with_an_error_only_if_something_is_damaged(directory):
    result = run("verify", "-d", directory)
    assert result.exit_code == 0
    assert result.output.splitlines() == ["1: ok", "2: ok", "3: ok"]
    damage(directory, 2)
    assert run("verify", "-d", directory).exit_code == 1
    result = run("verify", "2", "-d", directory)
    assert result.exit_code == 1
    assert "dense.safetensors: 1 bytes" in result.output
    assert run("verify", "3", "-d", directory).exit_code == 0


def test_rollback_makes_the_older_version_the_latest(directory):
    result = run("rollback", "2", "-d", directory)
    assert result.exit_code == 0
    assert "Version 2 is the latest now: 1002 events" in result.output
    assert SnapshotStore(directory).latest_version() == 2
    with SnapshotStore(directory) as store:  # the command let go of the lock
        assert store.versions() == [1, 2]


@pytest.mark.parametrize("command", ["verify", "rollback"])
def test_a_version_that_is_not_there_is_an_error_that_tells_which_are(directory, command):
    result = run(command, "7", "-d", directory)
    assert result.exit_code == 1
    assert "no snapshot 7" in result.output
    assert "Traceback" not in result.output


def test_rollback_is_refused_while_a_learner_writes(directory):
    with SnapshotStore(directory):
        result = run("rollback", "1", "-d", directory)
    assert result.exit_code == 1
    assert "Stop it first" in result.output
    assert SnapshotStore(directory).latest_version() == 3


def test_rollback_to_a_damaged_version_is_refused(directory):
    damage(directory, 1)
    result = run("rollback", "1", "-d", directory)
    assert result.exit_code == 1
    assert "damaged" in result.output
    assert SnapshotStore(directory).latest_version() == 3


def test_the_directory_comes_from_the_settings(directory, tmp_path):
    settings = tmp_path / "settings.toml"
    settings.write_text(f'[snapshot]\ndirectory = "{directory}"\n')
    assert "3: ok" in run("verify", "-c", settings).output
    settings.write_text("[snapshot]\nkeep = 0\n")
    result = run("list", "-c", settings)
    assert result.exit_code == 1
    assert "snapshot.keep" in result.output
