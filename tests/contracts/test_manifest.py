"""The manifest: what is written is read back, and nothing else is taken for one."""

import hashlib
import json
import random

import msgspec
import pytest

from contracts.manifest import FORMAT, FileEntry, Manifest, ManifestError, decode_manifest, encode_manifest

SHA = "ab" * 32


def manifest(**changes):
    content = {
        "library": "0.1.0",
        "version": 7,
        "created_ms": 1_700_000_000_000,
        "event_time_ms": 1_600_000_000_000,
        "n_events": 123,
        "offsets": {"events": {"0": 5, "11": 9}},
        "settings_fingerprint": "0123456789abcdef",
        "tasks": ["click", "purchase"],
        "layout": {"fields": ["user_id", "item_id"], "width": 16, "scale": 0.1},
        "files": {"dense.safetensors": FileEntry(SHA, 10), "profiles.msgpack": FileEntry(SHA, 32)},
    }
    return Manifest(**{**content, **changes})


def test_a_manifest_is_read_back_as_it_was_written():
    written = manifest()
    read = decode_manifest(encode_manifest(written))
    assert read == written
    assert read.resume_offsets == {("events", 0): 5, ("events", 11): 9}
    assert read.total_bytes == 42
    assert json.loads(encode_manifest(written))["manifest"]["offsets"] == {"events": {"0": 5, "11": 9}}


@pytest.mark.parametrize("checksums", [("", 1), (SHA, 1, "0" * 32)])
def test_a_file_has_one_checksum(checksums):
    with pytest.raises(ValueError, match="one checksum"):
        FileEntry(*checksums)


def test_a_file_without_a_checksum_is_refused():
    text = encode_manifest(manifest()).decode()
    body = text[text.index('"manifest":') + len('"manifest":') : -1].replace(SHA, "")
    envelope = {"sha256": hashlib.sha256(body.encode()).hexdigest()}
    data = json.dumps(envelope)[:-1].encode() + b', "manifest": ' + body.encode() + b"}"
    with pytest.raises(ManifestError, match="one checksum"):
        decode_manifest(data)


def test_every_flipped_bit_and_every_cut_is_noticed():
    data = encode_manifest(manifest())
    pick = random.Random(0)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << pick.randrange(8)
        with pytest.raises(ManifestError):
            decode_manifest(bytes(changed))
        with pytest.raises(ManifestError):
            decode_manifest(data[:place])


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"sha256": "", "manifest": null}', b"\0" * 500]
)
def test_bytes_that_are_no_manifest_are_refused(data):
    with pytest.raises(ManifestError):
        decode_manifest(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../../weights.safetensors": FileEntry(SHA, 1)}},
        {"files": {"/etc/passwd": FileEntry(SHA, 1)}},
        {"files": {"code.pkl": FileEntry(SHA, 1)}},
        {"files": {"a.msgpack\n": FileEntry(SHA, 1)}},
        {"files": {"a.msgpack": FileEntry("0", 1)}},
        {"files": {"a.msgpack": FileEntry(SHA, -1)}},
        {"files": {"a.msgpack": FileEntry("", 1, "0")}},
        {"offsets": {"events": {"x": 1}}},
        {"offsets": {"events": {"0": -1}}},
        {"version": 0},
    ],
)
def test_a_manifest_with_values_nobody_writes_is_refused_though_its_checksum_is_right(changes):
    with pytest.raises(ManifestError, match=r"\$"):  # the message names the path
        decode_manifest(encode_manifest(manifest(**changes)))


def test_another_format_is_refused_with_the_way_out_and_unknown_fields_are_not():
    with pytest.raises(ManifestError, match=f"format {FORMAT + 1} is newer than {FORMAT}.*upgrade"):
        decode_manifest(encode_manifest(manifest(format=FORMAT + 1)))

    with pytest.raises(ManifestError, match=f"format {FORMAT - 1} is older than {FORMAT}.*new snapshot folder"):
        decode_manifest(encode_manifest(manifest(format=FORMAT - 1)))

    class Later(Manifest, frozen=True, kw_only=True):
        more: int = 5

    assert decode_manifest(encode_manifest(Later(**msgspec.structs.asdict(manifest())))) == manifest()


def test_a_layout_that_is_not_json_is_refused():
    with pytest.raises(ValueError, match="plain JSON"):
        encode_manifest(manifest(layout={"of": object()}))
