"""`anabranch demo`: the whole loop with nothing but this package, and nothing left behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def processes_of(folder):
    """Ids of the processes whose command line or environment names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:  # it ended meanwhile, or is not ours
            continue
        if str(folder).encode() in told:
            found.append(int(process.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc to see what is left running")
def test_the_demo_learns_serves_shows_scores_and_leaves_nothing_behind(tmp_path):
    demo = subprocess.run(
        [sys.executable, "-m", "cli.main", "demo", "--events", "5000"],
        cwd=ROOT,
        # Its folder goes here, and every process it starts has this in its environment.
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "Traceback" not in demo.stderr
    # The curve, a number per quarter; then scores before and after, by two versions of the model.
    assert re.search(r"^\s*content_view(\s+\d\.\d{3}){4}", demo.stdout, re.MULTILINE), demo.stdout
    before, after = map(int, re.search(r"model v(\d+) → v(\d+)", demo.stdout).groups())
    assert before < after
    assert len(re.findall(r"^\s*\S+ +\S+( +0\.\d{4}){4} +\d +\d\s*$", demo.stdout, re.MULTILINE)) >= 4, demo.stdout
    snapshots = re.search(r"Snapshots on disk: (.*)", demo.stdout)[1]
    assert len(re.findall(r"v\d{8}", snapshots)) >= 2
    assert "every process has ended" in demo.stdout
    assert processes_of(tmp_path) == []
    # What torch itself caches beside it is not the demo's.
    assert list(tmp_path.glob("anabranch*")) == []
