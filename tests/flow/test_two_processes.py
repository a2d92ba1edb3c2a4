"""Ingest and learner in two processes come to what one process comes to, and neither outlives the other."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ONE, TWO = ({"ANABRANCH__PROCESSES": number} for number in ("1", "2"))


def ingest_of(run):
    return next(
        (child for child in run.children() if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()), None
    )


def is_there(pid):
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def left_of(pids):
    """Those still there after a while: the tracker goes when it sees that nobody is left."""
    deadline = time.monotonic() + 30
    while (left := [pid for pid in pids if is_there(pid)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def shared():
    """Names in shared memory, but for semaphores: those are of other tests' pools, too."""
    return {file.name for file in Path("/dev/shm").iterdir() if not file.name.startswith("sem.")}


@pytest.fixture
def before():
    if not Path("/proc/self/task").exists():
        pytest.skip("needs /proc")
    return shared()


def test_one_process_comes_to_the_same_state_bit_for_bit(straight, flow, same_state):
    """The straight run is one of two processes, and without a pair of models beside (learner/gain.py)."""
    flow.configure(straight.stream)
    with_pair = {**ONE, "ANABRANCH__EVALUATION__SHADOW_SHARE": "0.3"}
    flow.run("learn", "-c", flow.config, "--until-end", environment=with_pair)
    same_state(flow.newest(), straight.flow.newest())


def test_a_killed_ingest_ends_the_service_with_one_clear_line_and_nothing_is_left(before, straight, flow):
    flow.configure(straight.stream)
    with flow.start("learn", "-c", flow.config, environment=TWO) as run:
        run.until(lambda: run.consumed() >= 200)
        family = run.children()
        pid = ingest_of(run)
        os.kill(pid, signal.SIGKILL)
        assert run.wait(20) == 1, run.output
    assert f"The ingest process (pid {pid}) ended by SIGKILL" in run.output.strip().splitlines()[-1]
    assert "Traceback" not in run.output
    assert "leaked" not in run.output
    assert left_of(family) == []
    assert shared() <= before


def test_an_ingest_whose_learner_is_killed_goes_at_once(before, straight, flow):
    flow.configure(straight.stream)
    with flow.start("learn", "-c", flow.config, environment=TWO) as run:
        run.until(lambda: run.consumed() >= 200)
        family = run.children()
        assert ingest_of(run) in family
        run.kill()
    assert left_of(family) == []
    assert "leaked" not in run.output
    assert shared() <= before


@pytest.mark.parametrize("moment", ["importing", "connecting"])
def test_a_learner_killed_before_it_learns_leaves_nothing(moment, before, flow, stream_of):
    """While the ingest imports, and while it waits for a broker that is not there."""
    flow.configure(stream_of("127.0.0.1:1", "nowhere", []))
    with flow.start("learn", "-c", flow.config, environment=TWO) as run:
        pid = run.until(lambda: ingest_of(run))
        if moment == "connecting":
            run.said("No \\[\\[fields|waiting for|127.0.0.1:1")
        run.kill()
    assert left_of([pid]) == []
    assert shared() <= before


def test_a_ctrl_c_to_both_processes_is_answered_by_one_snapshot_and_a_good_end(before, straight, flow):
    """A terminal sends it to every process of the group."""
    flow.configure(straight.stream, every_events=1_000_000)
    with flow.start("learn", "-c", flow.config, environment=TWO) as run:
        run.until(lambda: run.consumed() >= 200)
        family = run.children()
        for pid in (ingest_of(run), run.process.pid):
            os.kill(pid, signal.SIGINT)
        assert run.wait(10) == 0, run.output
        stopped_after = int(run.said(r"Stopped after (\d+) events")[1])
    manifest = flow.newest().manifest
    assert manifest.n_events == manifest.offsets[straight.stream.topic]["0"] == stopped_after >= 200
    assert "Traceback" not in run.output
    assert "leaked" not in run.output
    assert left_of(family) == []
    assert shared() <= before
