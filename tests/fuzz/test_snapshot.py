"""A snapshot's files with any bytes in them, and a manifest that vouches for them: read, or told as damaged."""

import hashlib
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.manifest import FileEntry, encode_manifest
from learner.snapshot import SnapshotDamagedError, SnapshotStore

FILES = ("dense.safetensors", "join.msgpack", "manifest.json")


@pytest.fixture(scope="module")
def version():
    with tempfile.TemporaryDirectory() as folder, SnapshotStore(Path(folder)) as store:
        store.publish(
            {"dense": {"w": np.arange(6, dtype=np.float32), "n": np.zeros((2, 3), np.int64)}},
            {"join": {"open": [1, 2.5, None], "name": "x"}},
            created_ms=1,
            event_time_ms=1,
            n_events=1,
            offsets={("events", 0): 1},
            settings_fingerprint="x",
            tasks=["click"],
        )
        yield store.path(1)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4),
    st.booleans(),
)
def test_any_bytes_in_a_file_are_read_or_told_as_damage(version, file, changes, is_new):
    store = SnapshotStore(version.parent)
    whole = (version / file).read_bytes()
    manifest_bytes = (version / "manifest.json").read_bytes()
    data = b"" if is_new else whole
    for place, n_cut, put in changes:
        data = data[:place] + put + data[place + n_cut :]
    try:
        if file != "manifest.json":
            manifest = store.manifest(1)
            entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
            vouched = msgspec.structs.replace(manifest, files={**manifest.files, file: entry})
            (version / "manifest.json").write_bytes(encode_manifest(vouched))
        (version / file).write_bytes(data)
        try:
            loaded = store.load()
        except SnapshotDamagedError:
            pass
        else:
            assert loaded.manifest.version == 1
            assert all(array.flags.writeable for arrays in loaded.groups.values() for array in arrays.values())
    finally:
        (version / file).write_bytes(whole)
        (version / "manifest.json").write_bytes(manifest_bytes)
