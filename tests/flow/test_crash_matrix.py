"""Killed by SIGKILL at chosen and at random points, again and again, a run ends where an uninterrupted one ends."""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from learner.snapshot import SnapshotStore
from learner.snapshot_files import VersionFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DRIVER = Path(__file__).parent / "crash_driver.py"
NO_SUCH_POINT = 99


class Driver:
    """The process whose forks are killed."""

    def __init__(self, config):
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(config)],
            cwd=DRIVER.parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, flow, number, keep=2, processes=1, victim="learner", group=None, **how):
        """Learn to the end, or to the kill; the exit status. Nothing of it may be left running.

        :param group: None: one of its own, so that nobody waits until the broker misses the killed member.
        """
        order = {
            "arguments": ["learn", "-c", str(flow.config), "--until-end"],
            "environment": {
                "ANABRANCH__PROCESSES": str(processes),
                "ANABRANCH__KAFKA__GROUP": group or f"{flow.folder.name}-{number}",
                "ANABRANCH__SNAPSHOT__KEEP": str(keep),
                "ANABRANCH__SNAPSHOT__DELTA_SECONDS": "0.005",
            },
            "log": str(flow.folder / "crashes.log"),
            "victim": victim,
            **how,
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        log = (flow.folder / "crashes.log").read_text(errors="replace")[-5000:]
        assert reply["n_left"] == 0, log
        if reply["status"] == 1 and victim == "ingest":
            assert re.search(r"The ingest process \(pid \d+\) ended by SIGKILL", log.splitlines()[-1]), log
        else:
            assert reply["status"] in (0, -9, NO_SUCH_POINT), log
        return reply["status"]

    def close(self):
        with self.process:
            self.process.stdin.close()


@pytest.fixture(scope="module")
def driver(straight):
    made = Driver(straight.flow.config)
    yield made
    made.close()


def a_way_to_die(chance, within_seconds):
    """At a moment from outside, or at a point inside."""
    if chance.random() < 0.5:
        return {"after_seconds": chance.uniform(0.05, within_seconds)}
    most = {"step": 12, "barrier": 3, "publish": 63, "cleanup": 3, "delta": 20}
    what = chance.choice([*most, "publish"])
    return {"kill": [what, chance.randint(1, most[what])]}


def learn_and_kill(driver, flow, chance, n_kills, within_seconds=1.0, victims=("learner",), **how):
    """Runs until one reaches the end of the log, of which so many are killed at random; how many were."""
    killed = number = 0
    while True:
        number += 1
        assert number < 1000, "it should come nearer to the end"
        death = {**a_way_to_die(chance, within_seconds), "victim": chance.choice(victims)} if killed < n_kills else {}
        status = driver.run(flow, f"{chance.random():.12f}", **how, **death)
        killed += status in (-9, 1)
        if status == 0:
            return killed


def random_kills(driver, straight, tmp_path, same_state, n_kills, seed, **how):
    chance, killed, n_logs = random.Random(seed), 0, 0
    while killed < n_kills:
        n_logs += 1
        flow = type(straight.flow)(tmp_path / f"log-{n_logs}")
        flow.folder.mkdir()
        flow.configure(straight.stream, every_events=chance.choice([150, 400, 1_500]))
        killed += learn_and_kill(driver, flow, chance, n_kills - killed, **how)
        same_state(flow.newest(), straight.flow.newest())
    print(f"{killed} kills at random over {n_logs} passes of {len(straight.stream.events)} events")
    return killed


def test_twenty_kills_at_random_leave_no_trace_in_the_end_state(driver, straight, tmp_path, same_state):
    assert random_kills(driver, straight, tmp_path, same_state, 20, seed=1) >= 20


def lying(flow, latest):
    """What lies in the snapshots' folder, in words: what a run left unfinished, and whether `latest` is the latest."""
    found = set()
    named = int(re.match(r"v([0-9]{8}) ", (flow.snapshots / "LATEST").read_text())[1])
    if named != latest:
        assert named > latest, "LATEST never goes back"
        found.add("LATEST moved")
    # What a kill left of a delta stays with its version, and goes with it.
    for path in [*flow.snapshots.iterdir(), *(flow.snapshots / f"v{named:08d}").iterdir()]:
        version = re.match(r"v([0-9]{8})(.*)", path.name)
        if path.name.endswith(".tmp") and path.is_dir():
            number = int(re.match(r"v([0-9]{8})", path.relative_to(flow.snapshots).parts[0])[1])
            delta = 0 if version else int(re.match(r"delta-([0-9]{6})", path.name)[1])
            is_whole = (path / "manifest.json").exists() and not VersionFolder(path, number, delta).verify(quick=False)
            found.add(f"{path.name.partition('-')[0] if not version else 'version'}.tmp{'' if is_whole else ', torn'}")
        elif path.name.endswith(".tmp"):
            is_whole = re.fullmatch(r"v[0-9]{8} [0-9a-f]{8}\n", path.read_text())
            found.add(f"LATEST.tmp{'' if is_whole else ', torn'}")
        elif version and not version[2] and int(version[1]) > named:
            assert VersionFolder(path, int(version[1])).verify(quick=False) == []
            found.add("a version above LATEST")
    if len(list(flow.snapshots.glob("v????????"))) > 2 + ("a version above LATEST" in found):
        found.add("one version too many")
    return found


@pytest.mark.kafka
@pytest.mark.parametrize(
    "n_kills", [5, pytest.param(40, marks=[pytest.mark.matrix, pytest.mark.timeout(1800)])], ids=["few", "many"]
)
def test_kills_at_random_on_apache_kafka_in_one_group_leave_no_trace_in_the_end_state(
    n_kills, driver, straight, undisturbed, topic, tmp_path, same_state
):
    """Each run finds the dead member of the one before in its group. The reference is the driver's, not killed."""
    stream, _ = undisturbed
    calm = type(straight.flow)(tmp_path / "calm")
    calm.folder.mkdir()
    calm.configure(stream)
    assert driver.run(calm, "straight") == 0
    reference = type(straight)(stream, calm, {})
    how = {"group": topic, "within_seconds": 3.0, "seed": 5}
    assert random_kills(driver, reference, tmp_path, same_state, n_kills, **how) >= n_kills


CHOSEN = [("step", 1), ("step", 4), ("barrier", 1), ("barrier", 3)]
# In this order: what one leaves, the next one finds.
NAMED = [
    ("publish", "make_folder version.tmp", set()),
    ("publish", "write *.safetensors half", {"version.tmp, torn"}),
    ("cleanup", "remove version.tmp half", {"version.tmp, torn"}),
    ("publish", "write manifest.json half", {"version.tmp, torn"}),
    ("publish", "write manifest.json whole", {"version.tmp"}),
    ("publish", "sync_folder version.tmp", {"version.tmp"}),
    ("publish", "rename version", {"version.tmp"}),
    ("cleanup", "remove version.tmp", {"version.tmp"}),
    ("publish", "sync_folder snapshots", {"a version above LATEST"}),
    ("publish", "write LATEST.tmp", {"a version above LATEST"}),
    ("publish", "write LATEST.tmp half", {"a version above LATEST", "LATEST.tmp, torn"}),
    ("publish", "rename LATEST", {"a version above LATEST", "LATEST.tmp"}),
    ("cleanup", "rename version.rolled-back", {"a version above LATEST"}),
    ("publish", "rename version.tmp", {"LATEST moved", "one version too many"}),
    ("publish", "remove version.tmp", {"LATEST moved", "one version too many", "version.tmp"}),
    ("publish", "remove version.tmp half", {"LATEST moved", "one version too many", "version.tmp, torn"}),
]
NAMED_OF_DELTAS = [
    ("make_folder delta.tmp", set()),
    ("write *.safetensors half", {"delta.tmp, torn"}),
    ("write manifest.json whole", {"delta.tmp"}),
    ("rename delta", {"delta.tmp"}),
]


def test_a_kill_within_a_batch_before_a_publish_and_at_each_step_of_one_leaves_what_it_must_and_no_trace_in_the_end(
    driver, straight, flow, same_state
):
    """Between a sync and a rename, of the version and of LATEST; while an old one is deleted; at the clean-up."""
    flow.configure(straight.stream, every_events=150)
    for number, point in enumerate(CHOSEN):
        assert driver.run(flow, number, kill=point) == -9, point
    for what, point, expected in NAMED:
        latest = flow.newest().manifest.version
        assert driver.run(flow, f"{what} {point}", kill=(what, point)) == -9, point
        assert lying(flow, latest) == expected, point
        assert flow.newest().skipped == ()
        assert (flow.newest().manifest.version > latest) == ("LATEST moved" in expected)
    assert driver.run(flow, "end") == 0
    assert lying(flow, flow.newest().manifest.version) == set()
    same_state(flow.newest(), straight.flow.newest())


def test_a_kill_within_a_delta_leaves_no_trace(driver, straight, flow, same_state):
    flow.configure(straight.stream, every_events=600)
    for point, expected in NAMED_OF_DELTAS:
        latest = flow.newest().manifest.version if flow.snapshots.exists() else 0
        assert driver.run(flow, point, kill=("delta", point)) == -9, point
        newest = flow.newest()
        assert {one for one in lying(flow, latest) if "version" not in one} == {"LATEST moved", *expected}, point
        assert newest.skipped == ()
        assert list(SnapshotStore(flow.snapshots).deltas(newest.manifest.version, 0)) == []
    assert driver.run(flow, "end") == 0
    same_state(flow.newest(), straight.flow.newest())


OF_TWO = [
    ("learner", "step", 3),
    ("ingest", "barrier", 1),  # a snapshot is about to be written, and will be
    ("both", "publish", 3),
]


def test_a_kill_of_the_learner_of_the_ingest_or_of_both_leaves_no_trace_and_no_process(
    driver, straight, flow, same_state
):
    flow.configure(straight.stream, every_events=400)
    for victim, what, nth in OF_TWO:
        status = driver.run(flow, victim, processes=2, victim=victim, kill=(what, nth))
        assert status == (1 if victim == "ingest" else -9), victim
    assert driver.run(flow, "end", processes=2) == 0
    same_state(flow.newest(), straight.flow.newest())


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_sixty_kills_of_one_of_two_processes_or_of_both(driver, straight, tmp_path, same_state, capsys):
    two = {"processes": 2, "victims": ("learner", "ingest", "both"), "within_seconds": 3.0}
    with capsys.disabled():
        print()
        random_kills(driver, straight, tmp_path, same_state, 60, seed=3, **two)


def publish_points(driver, straight, flow, points):
    """Kill each run at the next point of its first publish; gives the points there were."""
    flow.configure(straight.stream, every_events=40)
    assert driver.run(flow, "warm", kill=("barrier", 4)) == -9  # three versions: from now on each publish deletes one
    found = 0
    for nth in points:
        status = driver.run(flow, nth, kill=("publish", nth))
        if status == NO_SUCH_POINT:
            break
        assert status == -9, nth
        assert flow.newest().skipped == ()
        found += 1
    assert driver.run(flow, "end") == 0
    return found


@pytest.mark.matrix
@pytest.mark.timeout(3600)
def test_a_kill_at_every_point_of_a_publish_then_a_hundred_and_forty_at_random(
    driver, straight, flow, tmp_path, same_state, capsys
):
    n_points = publish_points(driver, straight, flow, range(1, 500))
    same_state(flow.newest(), straight.flow.newest())
    assert n_points > 40, "files, syncs, renames and the deletion of an old version"
    with capsys.disabled():
        print(f"\n{n_points} points of a publish, a kill at each")
        n_random = random_kills(driver, straight, tmp_path, same_state, 140, seed=2)  # with the sixty, 200 at random
        print(f"{n_points + n_random} kills in all; the end state was the same bit for bit each time")


@pytest.mark.matrix  # on Apache Kafka, with fewer kills, it is run always: test_sigkill.py
@pytest.mark.timeout(600)
def test_over_four_partitions_no_event_is_learned_twice_or_missed(
    driver, straight, topic, tmp_path, make, produce, stream_of
):
    """Of each partition as many as in a run without kills, which are all there are; of each task as many labels."""
    events = make(3_000, seed=4)
    stream = stream_of(straight.stream.servers, topic, events)
    produce(stream, events, n_partitions=4)
    # Views are only shown, not predicted: what is learned of them would depend on the order between partitions.
    tasks = '[{ name = "click", window = "10s" }, { name = "purchase", window = "20s" }]'
    ends = []
    for name, n_kills in (("straight", 0), ("killed", 5)):
        flow = type(straight.flow)(tmp_path / name)
        flow.folder.mkdir()
        flow.configure(stream, tasks=tasks, every_events=150)
        assert learn_and_kill(driver, flow, random.Random(7), n_kills) == n_kills
        ends.append(flow.newest())
    offsets = ends[0].manifest.offsets[topic]
    assert len(offsets) == 4
    assert all(offsets.values()), "every partition should have events"
    count = Counter(event.type for event in events)
    for end in ends:
        assert end.manifest.offsets[topic] == offsets
        assert end.manifest.n_events == sum(offsets.values()) == len(events)
        # Each exposure is learned at once as a negative, and each outcome as one positive more.
        learned = end.states["learner"]
        assert learned["n_positives"] == [count["click"], count["purchase"]]
        assert learned["n_learned"] == [count["content_view"] + count[task] for task in ("click", "purchase")]
