"""A snapshot directory that somebody damaged or made to hurt: what is read was published, or the damage is told.

Whatever lies there, nothing outside the directory is opened, no pipe is waited for, and no memory is taken because a
file says that it needs it. `hostile/` holds what once was worth trying, by the file it takes the place of; its `names`
are of folders beside the versions.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from learner.snapshot import LATEST, LOCK, NoSnapshotError, SnapshotDamagedError, SnapshotStore

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="limits memory by what /proc tells"),
]

CORPUS = Path(__file__).parent / "hostile"
V1, V2 = "v00000001", "v00000002"
DELTAS = (f"{V2}/delta-000001", f"{V2}/delta-000002")
FOLDERS = (V1, V2, *DELTAS)
FILES = (
    LATEST,
    LOCK,
    *(f"{version}/{name}" for version in (V1, V2) for name in ("manifest.json", "dense.safetensors", "join.msgpack")),
    *(f"{delta}/{name}" for delta in DELTAS for name in ("manifest.json", "dense.safetensors")),
)
MOST_BYTES = 256 << 20
META = {"created_ms": 1, "event_time_ms": 1}


def publish(store, number):
    return store.publish(
        {"dense": {"w": np.full(6, number, np.float32), "n": np.zeros((2, 3), np.int64)}},
        {"join": {"open": [number, 2.5, None], "name": "x"}},
        n_events=number,
        offsets={("events", 0): number},
        settings_fingerprint="x",
        tasks=["click"],
        **META,
    )


def content(snapshot):
    """All of it, comparable."""
    arrays = {
        (group, name): (array.dtype.str, array.shape, array.tobytes())
        for group, named in snapshot.groups.items()
        for name, array in named.items()
    }
    return snapshot.manifest, arrays, snapshot.states


@pytest.fixture(scope="module")
def whole():
    """A directory of two versions, the second with two deltas, beside one that is rolled back."""
    with tempfile.TemporaryDirectory() as folder, SnapshotStore(Path(folder) / "snapshots") as store:
        publish(store, 1)
        base = publish(store, 2)
        for number in (1, 2):
            base = store.publish_delta(base, {"dense": {"w": np.full(2, number, np.float32)}}, **META)
        shutil.copytree(store.path(1), store.directory / "v00000003.rolled-back")
        yield store.directory


@pytest.fixture(scope="module")
def published(whole):
    """What may be read: the versions, and the deltas of the second."""
    store = SnapshotStore(whole)
    return {n: content(store.load(n)) for n in (1, 2)}, [content(delta) for delta in store.deltas(2, 0)]


@contextlib.contextmanager
def copied(whole):
    """A copy to damage, beside a file that is nobody's business."""
    with tempfile.TemporaryDirectory() as folder:
        beside = Path(folder, "beside")
        shutil.copytree(whole / V2, beside)
        yield Path(shutil.copytree(whole, Path(folder) / "snapshots")), beside


OPENED = None


def note_opened(event, arguments):
    if OPENED is not None and event in {"open", "os.listdir", "os.scandir"} and not isinstance(arguments[0], int):
        OPENED.append(Path(os.path.realpath(arguments[0])))


sys.addaudithook(note_opened)


@contextlib.contextmanager
def confined(directory):
    """Nothing but the directory is opened, and no more than so much memory is asked for."""
    global OPENED  # noqa: PLW0603 - an audit hook stays for good
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MOST_BYTES, before[1]))
    OPENED = opened = []
    try:
        yield
    finally:
        OPENED = None
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert [path for path in opened if not path.is_relative_to(directory.resolve())] == []


def causes(error):
    while error is not None:
        yield error
        error = error.__cause__


def read(directory):
    """What the directory gives: the newest, each version, and the deltas behind each; and the damage that was told."""
    store, found, told = SnapshotStore(directory), [], []
    with confined(directory):
        for what in (store.load, lambda: store.load(1), lambda: store.load(2)):
            try:
                found.append(what())
            except (SnapshotDamagedError, NoSnapshotError) as error:
                told.append(error)
        deltas = {1: [], 2: []}
        for version, behind in deltas.items():
            try:
                behind.extend(store.deltas(version, 0))
            except SnapshotDamagedError as error:
                told.append(error)
            with contextlib.suppress(NoSnapshotError):
                store.verify(version)
        store.versions()
    for snapshot in (*found, *deltas[1], *deltas[2]):
        assert all(array.flags.writeable for arrays in snapshot.groups.values() for array in arrays.values())
    return found, deltas, told


def assert_published(directory, published):
    """All that is read was published, as that version or delta."""
    found, deltas, told = read(directory)
    versions, of_second = published
    for snapshot in found:
        assert content(snapshot) == versions[snapshot.manifest.version]
    assert deltas[1] == []
    assert [content(delta) for delta in deltas[2]] == of_second[: len(deltas[2])]
    return found, told


def seal(body):
    """A manifest of any JSON, with the checksum that makes it one."""
    return b'{"sha256":"%s","manifest":%s}' % (hashlib.sha256(body).hexdigest().encode(), body)


def vouch(path):
    """Let the manifest beside a file say that its bytes are right; true if it could."""
    manifest, data = path.with_name("manifest.json"), path.read_bytes()
    try:
        body = msgspec.json.decode(manifest.read_bytes())["manifest"]
        if path != manifest:
            quick = {"sha256": "", "xxh3_128": xxhash.xxh3_128(data).hexdigest()}
            checksum = quick if path.parent.name.startswith("delta") else {"sha256": hashlib.sha256(data).hexdigest()}
            body["files"][path.name] = {**checksum, "bytes": len(data)}
        manifest.write_bytes(seal(msgspec.json.encode(body)))
    except (OSError, TypeError, KeyError, msgspec.MsgspecError, UnicodeDecodeError):
        return False  # the manifest is damaged itself
    return True


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --- a file or folder that is something else ---


def a_folder(path, beside):
    path.mkdir()


def a_pipe(path, beside):
    os.mkfifo(path)


def a_file(path, beside):
    path.write_bytes(b"x")


def a_link_outside(path, beside):
    """To what a reader would take: what lies there is a whole copy."""
    path.symlink_to(beside / path.name if (beside / path.name).exists() else beside)


def a_link_to_itself(path, beside):
    path.symlink_to(path)


def a_link_without_end(path, beside):
    path.symlink_to("/dev/zero")


def a_terabyte(path, beside):
    path.touch()
    os.truncate(path, 1 << 40)


def nothing(path, beside):
    """It is gone."""


KINDS = (a_folder, a_pipe, a_file, a_link_outside, a_link_to_itself, a_link_without_end, a_terabyte, nothing)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [*FILES, *FOLDERS])
def test_what_is_no_file_or_folder_of_ours_is_told_and_neither_opened_nor_waited_for(whole, published, place, kind):
    with copied(whole) as (directory, beside):
        remove(directory / place)
        kind(directory / place, beside)
        found, told = assert_published(directory, published)
        of_second = place.startswith(V2) and not place.startswith(DELTAS)
        assert found[0].manifest.version == (1 if of_second else 2)
        # That the last delta is not there means that there was none.
        assert (told == []) == (place in {LATEST, LOCK} or (place, kind) == (DELTAS[-1], nothing))


def test_a_file_of_a_terabyte_that_the_manifest_vouches_for_does_not_fit_into_memory(whole, published):
    with copied(whole) as (directory, beside):
        for folder in (directory / V2, directory / DELTAS[0]):
            body = msgspec.json.decode((folder / "manifest.json").read_bytes())["manifest"]
            body["files"]["dense.safetensors"]["bytes"] = 1 << 40
            (folder / "manifest.json").write_bytes(seal(msgspec.json.encode(body)))
            a_terabyte(folder / "dense.safetensors", beside)
        found, told = assert_published(directory, published)
        assert [snapshot.manifest.version for snapshot in found] == [1, 1]
        assert [error.problem for error in told] == ["it does not fit into memory"] * 2


@pytest.mark.parametrize(("source", "target"), [(a, b) for a in FOLDERS for b in FOLDERS if a != b])
def test_a_version_or_delta_in_the_place_of_another_is_not_taken_for_it(whole, published, source, target):
    with copied(whole) as (directory, _):
        remove(directory / target)
        shutil.copytree(whole / source, directory / target)
        _, told = assert_published(directory, published)
        assert any("it is the manifest of " in error.problem for error in told)


# --- the kept corpus ---


def kept(what):
    return sorted((CORPUS / what).iterdir())


@pytest.mark.parametrize("path", kept("LATEST"), ids=lambda path: path.stem)
def test_each_kept_latest_names_a_version_of_this_directory_or_none(whole, published, path, caplog):
    with copied(whole) as (directory, _):
        (directory / LATEST).write_bytes(path.read_bytes())
        [newest, *_], told = assert_published(directory, published)
        assert newest.manifest.version == (1 if path.stem == "older" else 2)
        assert f"{directory / LATEST} is damaged" in caplog.text or path.stem in {"older", "above_all"}
        assert [skipped.version for skipped in newest.skipped] == [99_999_999] * (path.stem == "above_all")
        assert told == []


def assert_goes_on(directory):
    """Each of three writers publishes under a number of its own, which readers and the next writer know."""
    before = {int(path.name[1:9]) for path in directory.iterdir() if re.fullmatch(r"v[0-9]{8}(\..*)?", path.name)}
    numbers = []
    for n in (3, 4, 5):
        with SnapshotStore(directory, keep=9) as store:
            numbers.append(publish(store, n).version)
        found = SnapshotStore(directory).load()
        assert (found.manifest.version, found.manifest.n_events, found.skipped) == (numbers[-1], n, ())
    assert len({*numbers} - before) == 3


@pytest.mark.parametrize("path", kept("LATEST"), ids=lambda path: path.stem)
def test_behind_each_kept_latest_a_writer_publishes_what_is_read(whole, path):
    with copied(whole) as (directory, _):
        (directory / LATEST).write_bytes(path.read_bytes())
        assert_goes_on(directory)


@pytest.mark.parametrize("latest", ["kept", "missing", "above_all"])
@pytest.mark.parametrize("path", kept("names"), ids=lambda path: path.stem)
def test_beside_folders_of_each_kept_name_a_writer_publishes_what_is_read(whole, path, latest):
    """The folders have nothing in them: a version of such a name is damaged."""
    with copied(whole) as (directory, _):
        for name in path.read_text().split():
            (directory / name).mkdir()
        if latest == "missing":
            (directory / LATEST).unlink()
        elif latest == "above_all":
            shutil.copy(CORPUS / "LATEST" / "above_all.txt", directory / LATEST)
        assert_goes_on(directory)


@pytest.mark.parametrize("place", [V2, *DELTAS])
@pytest.mark.parametrize("path", kept("manifest"), ids=lambda path: path.stem)
def test_each_kept_manifest_is_damage(whole, published, path, place):
    """One that is an object is what differs from the true one, and gets its checksum; another is written as it is."""
    with copied(whole) as (directory, _):
        file, data = directory / place / "manifest.json", path.read_bytes()
        with contextlib.suppress(ValueError, RecursionError, TypeError):
            body = {**json.loads(file.read_bytes())["manifest"], **json.loads(data)}
            data = seal(json.dumps(body).encode())
        file.write_bytes(data)
        _, told = assert_published(directory, published)
        what = "dense.safetensors" if path.stem == "exabytes" else "manifest.json"
        assert {error.file.rpartition("/")[2] for error in told} == {what}


@pytest.mark.parametrize(
    ("path", "place"),
    [
        *itertools.product(kept("safetensors"), (V1, V2, *DELTAS)),
        *itertools.product(kept("msgpack"), (V1, V2)),  # a delta holds no state
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_each_kept_file_is_damage_though_the_manifest_vouches_for_it(whole, published, path, place):
    name = {".safetensors": "dense.safetensors", ".msgpack": "join.msgpack"}[path.suffix]
    with copied(whole) as (directory, _):
        (directory / place / name).write_bytes(path.read_bytes())
        assert vouch(directory / place / name)
        _, told = assert_published(directory, published)
        assert {error.file.rpartition("/")[2] for error in told} == {name}
        assert not any(isinstance(cause, MemoryError) for error in told for cause in causes(error))


# --- what nobody thought of ---

EDITS = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4)


def edited(data, edits):
    for place, n_cut, put in edits:
        data = data[:place] + put + data[place + n_cut :]
    return data


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FILES), EDITS, st.sampled_from([None, *FILES])), min_size=1, max_size=3))
def test_with_any_bytes_in_files_what_is_read_was_published(whole, published, damage):
    """Each file gets edits of its own bytes, or of another file's."""
    with copied(whole) as (directory, _):
        for file, edits, other in damage:
            (directory / file).write_bytes(edited((whole / (other or file)).read_bytes(), edits))
        assert_published(directory, published)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([file for file in FILES if "/" in file]), EDITS, st.booleans())
def test_any_bytes_that_the_manifest_vouches_for_are_read_or_told_as_damage(whole, file, edits, is_new):
    with copied(whole) as (directory, _):
        path = directory / file
        if path.name == "manifest.json":
            envelope = path.read_bytes()
            body = envelope[envelope.index(b'"manifest":') + len(b'"manifest":') : -1]
            path.write_bytes(seal(edited(b"" if is_new else body, edits)))
        else:
            path.write_bytes(edited(b"" if is_new else path.read_bytes(), edits))
            assert vouch(path)
        found, deltas, told = read(directory)
        assert {snapshot.manifest.version for snapshot in found} <= {1, 2}
        assert [delta.manifest.delta for delta in deltas[2]] == list(range(1, len(deltas[2]) + 1))
        assert not any(isinstance(cause, MemoryError) for error in told for cause in causes(error))


NAMES = st.one_of(
    st.from_regex(r"[./\\~a-z\x00\n-]{0,20}(safetensors|msgpack)?", fullmatch=True),
    st.sampled_from(["../", "../../", "/", "./", "beside/", "../beside/"]).map(lambda way: f"{way}dense.safetensors"),
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FOLDERS), NAMES)
@example(V2, "../../beside/dense.safetensors")
def test_a_manifest_names_no_file_outside_its_folder(whole, published, place, name):
    with copied(whole) as (directory, _):
        manifest = directory / place / "manifest.json"
        body = msgspec.json.decode(manifest.read_bytes())["manifest"]
        entries = body["files"]
        entries[name] = entries.get(name) or entries["dense.safetensors"]
        manifest.write_bytes(seal(msgspec.json.encode(body)))
        found, _, told = read(directory)
        assert all(content(one) == published[0][one.manifest.version] for one in found)
        assert told != [] or not re.search(r"[/\\]", name)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=600) | st.from_regex(r"[0-9]{1,512}( .{0,20}\n)?", fullmatch=True).map(str.encode))
@example(b"9" * 500)
def test_with_any_bytes_in_lock_a_writer_publishes(whole, token):
    with copied(whole) as (directory, _):
        (directory / LOCK).write_bytes(token)
        with SnapshotStore(directory) as store:
            number = publish(store, 3).version
        assert re.fullmatch(rb"\d+ process \d+ on .+\n", (directory / LOCK).read_bytes())
        assert SnapshotStore(directory).load().manifest.version == number
