"""A snapshot with code in its files, and a manifest that vouches for them; what else may hurt: `tests/fuzz/hostile`."""

import hashlib
import os
import pickle
from pathlib import Path

import msgspec
import numpy as np
import pytest

from contracts.manifest import FileEntry, encode_manifest
from learner.snapshot import SnapshotDamagedError, SnapshotStore


class _Bomb:
    """Makes a file when a pickle of it is loaded."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self._marker),)


def _published(folder: Path) -> Path:
    """A whole snapshot; its version's folder."""
    with SnapshotStore(folder) as store:
        store.publish(
            {"dense": {"w": np.zeros(3)}},
            {"join": {"n": 1}},
            created_ms=1,
            event_time_ms=1,
            n_events=1,
            offsets={("events", 0): 1},
            settings_fingerprint="x",
            tasks=["click"],
        )
        return store.path(1)


def _replace(version: Path, file: str, data: bytes) -> None:
    """Put other bytes into a file, and let the manifest say that they are right."""
    manifest = SnapshotStore(version.parent).manifest(1)
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    changed = msgspec.structs.replace(manifest, files={**manifest.files, file: entry})
    (version / file).write_bytes(data)
    (version / "manifest.json").write_bytes(encode_manifest(changed))


@pytest.mark.parametrize("file", ["dense.safetensors", "join.msgpack"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_in_place_of_a_file_is_not_loaded(tmp_path: Path, file: str, protocol: int) -> None:
    version = _published(tmp_path / "snapshots")
    bomb = pickle.dumps(_Bomb(tmp_path / "exploded"), protocol)
    _replace(version, file, bomb)
    with pytest.raises(SnapshotDamagedError, match=file):
        SnapshotStore(tmp_path / "snapshots").load(1)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists(), "the bomb is none: this test shows nothing"


def test_a_pickle_beside_the_files_is_not_looked_at(tmp_path: Path) -> None:
    version = _published(tmp_path / "snapshots")
    (version / "dense.pkl").write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    SnapshotStore(tmp_path / "snapshots").load(1)
    assert not (tmp_path / "exploded").exists()


def test_an_extension_type_of_msgpack_is_its_bytes_and_runs_nothing(tmp_path: Path) -> None:
    version = _published(tmp_path / "snapshots")
    _replace(version, "join.msgpack", b"\xc7\x01\x05x")
    assert SnapshotStore(tmp_path / "snapshots").load(1).states["join"] == msgspec.msgpack.Ext(5, b"x")
