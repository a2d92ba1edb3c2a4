"""Bytes nobody would send: the kept corpus, what Hypothesis makes of it, and a few seconds of atheris."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

REQUIRE_ATHERIS = "ANABRANCH_REQUIRE_ATHERIS"

_PATH = Path(__file__).parent / "decoding.py"
_SPEC = importlib.util.spec_from_file_location("decoding_under_fuzz", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
decoding = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(decoding)

CORPUS = {path.stem: path.read_bytes() for path in sorted(decoding.CORPUS.iterdir())}
SPLICES = st.sampled_from(
    [
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\\",
        b"\\ud800",
        b"\xff",
        b"\x00",
        b"-",
        b"1e999",
        b"NaN",
        b"null",
        b"",
    ]
)


@pytest.mark.parametrize("name", CORPUS)
def test_each_input_of_the_corpus_becomes_events_or_is_rejected_with_a_reason(name):
    decoding.check(CORPUS[name])


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(CORPUS)),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 6), SPLICES | st.binary(max_size=4)), max_size=6),
)
def test_the_corpus_with_pieces_cut_out_and_put_in_becomes_events_or_is_rejected(name, changes):
    data = CORPUS[name]
    for place, n_cut, put in changes:
        data = data[:place] + put + data[place + n_cut :]
    decoding.check(data)


@pytest.mark.slow
def test_a_few_seconds_of_atheris_find_nothing(tmp_path):
    if importlib.util.find_spec("atheris") is None:
        missing = "atheris is missing: `make fuzz` or pip install '.[fuzz]'"
        if os.environ.get(REQUIRE_ATHERIS) == "1":
            pytest.fail(f"{REQUIRE_ATHERIS}=1, but {missing}")
        pytest.skip(missing)
    # Without its limit of memory: a process's peak begins with that of the one that started it, pytest's worker.
    how = ["-max_total_time=5", "-rss_limit_mb=0", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, _PATH, tmp_path, decoding.CORPUS, *how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr
