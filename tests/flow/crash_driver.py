"""Runs `anabranch` commands as forks of one process that has imported everything, and kills them by SIGKILL.

A line of JSON on standard input is a run; a line of JSON is the reply: its exit status, and how many processes it left
behind. Forks start in a moment, which is what makes hundreds of kills affordable; each is a process of its own, killed
where it stands.

``kill`` is a point that the run itself dies at, ``[what, which]``: the nth ``step``, halfway through; the nth
``barrier``, before the store is told; of the disk operations of the first ``publish``, of the ``cleanup`` at the start
or of the deltas the nth point, or the first whose name matches a pattern (exit 99: there were fewer, or none). A point
is named by what is done to what, numbers left out: ``rename LATEST``, ``make_folder version.tmp``. A write has three:
``write manifest.json``, before it; ``… half``; ``… whole``, not synced. A removal has two: before it, and ``… half``.
``after_seconds``: the driver kills it from outside.
``victim`` is who dies of two processes: the ``learner`` (if none is named), the ``ingest`` or ``both``.
"""

import contextlib
import ctypes
import fnmatch
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

NO_SUCH_POINT = 99
_PATIENCE_SECONDS = 120.0
_LEFT_SECONDS = 5.0
_PR_SET_CHILD_SUBREAPER = 36


def die(victim):
    if victim != "learner":
        kill_ingest(os.getpid())
    if victim != "ingest":
        os.kill(os.getpid(), signal.SIGKILL)


def kill_ingest(pid):
    """The process's child that ingests, where it is there; multiprocessing's tracker is another one."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)


def name_of(path):
    """What a path is to the store, whatever its number: `version`, `version.tmp`, `LATEST.tmp`, `delta`, ..."""
    return re.sub(r"^(?:v[0-9]{8}|(LATEST|delta)(?:-[0-9]{6})?)(?:\.[0-9]+)?", lambda m: m[1] or "version", path.name)


class Countdown:
    """Waits for the point to die at: the nth, or one of a name; in a phase that is not its own it does not look."""

    def __init__(self, what, which, victim):
        self.what, self.which, self.phase, self.victim = what, which, "cleanup", victim
        self.n_passed = 0

    def due(self, what, point=""):
        if what != self.what:
            return False
        self.n_passed += 1
        if isinstance(self.which, str):
            return fnmatch.fnmatchcase(point, self.which)
        return self.n_passed == self.which


def arm(countdown):
    from learner.disk import Disk
    from learner.embedding import EmbeddingTable
    from learner.snapshot import SnapshotStore
    from learner.writer import SnapshotWriter

    def dying(operation, partly):
        """The operation, with a point before it and one behind each part of it."""
        original = getattr(Disk, operation)

        def died_in(self, *arguments, **names):
            point = f"{operation} {name_of(arguments[-1] if operation == 'rename' else arguments[0])}"
            if countdown.due(countdown.phase, point):
                die(countdown.victim)
            for part, do in partly.items():
                if countdown.due(countdown.phase, f"{point} {part}"):
                    do(*arguments)
                    die(countdown.victim)
            return original(self, *arguments, **names)

        setattr(Disk, operation, died_in)

    def half_a_file(path, parts):
        data = b"".join(parts)
        path.write_bytes(data[: len(data) // 2])

    def a_file_not_synced(path, parts):
        path.write_bytes(b"".join(parts))

    def half_a_folder(folder):
        for path in sorted(folder.iterdir())[::2]:
            path.unlink()

    dying("write", {"half": half_a_file, "whole": a_file_not_synced})
    dying("remove", {"half": half_a_folder})
    for operation in ("make_folder", "sync_folder", "rename"):
        dying(operation, {})

    update, publish, acquire = EmbeddingTable.update, SnapshotStore.publish, SnapshotStore.acquire
    publish_delta = SnapshotStore.publish_delta

    def updated(*arguments):
        update(*arguments)
        if countdown.due("step"):
            die(countdown.victim)

    def published(self, *arguments, **names):
        if countdown.due("barrier"):
            die(countdown.victim)
        countdown.phase = "publish"
        manifest = publish(self, *arguments, **names)
        if countdown.what in ("publish", "cleanup"):
            os._exit(NO_SUCH_POINT)
        return manifest

    def published_delta(self, *arguments, **names):
        countdown.phase = "delta"
        try:
            return publish_delta(self, *arguments, **names)
        finally:
            countdown.phase = "learning"

    if countdown.what == "delta":
        # However quick the machine: what is written is waited for, so that the next poll can cut a delta behind it.
        for begin in ("snapshot", "delta"):
            begun = getattr(SnapshotWriter, begin)
            setattr(SnapshotWriter, begin, lambda self, barrier, begun=begun: (begun(self, barrier), self.wait()))

    EmbeddingTable.update, SnapshotStore.publish = updated, published
    SnapshotStore.publish_delta = published_delta

    def acquired(self):
        held, before = self._lock.held, countdown.phase
        countdown.phase = before if held else "cleanup"
        acquire(self)
        countdown.phase = before

    SnapshotStore.acquire = acquired


def run(order):
    """In the fork: the command, its output in a file."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["environment"])
    if order.get("kill"):
        arm(Countdown(*order["kill"], order["victim"]))
    from cli.main import app

    app(order["arguments"], standalone_mode=True)


def wait(pid, after_seconds, victim):
    """The exit status, as subprocess gives it."""
    start = time.monotonic()
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        age = time.monotonic() - start
        if age > _PATIENCE_SECONDS:
            os.kill(pid, signal.SIGABRT)
        elif after_seconds is not None and age >= after_seconds:
            if victim != "learner":
                kill_ingest(pid)
            if victim != "ingest":
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def n_left():
    """How many processes a run left behind that did not end soon, either; they are ended here."""
    start, n_killed = time.monotonic(), 0
    with contextlib.suppress(ChildProcessError):
        while True:
            if not os.waitpid(-1, os.WNOHANG)[0] and time.monotonic() - start > _LEFT_SECONDS:
                for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)
                    n_killed += 1
                os.wait()
            time.sleep(0.001)
    return n_killed


def warm_up(config):
    """Learn a few events in this process: every fork has the compiled loops that this loads."""
    from prometheus_client import CollectorRegistry

    import cli._ingest
    import cli._report
    import cli.learn  # noqa: F401
    import streamer.process  # noqa: F401
    from cli._assembly import assemble
    from contracts.records import Record
    from contracts.settings import load_settings
    from streamer.deadletter import MemoryDeadLetters
    from streamer.decode import EventDecoder
    from streamer.sources.memory import MemorySource

    events = [
        {
            "event_id": f"{type_}{number}",
            "type": type_,
            "user_id": number % 9,
            "item_id": number % 7,
            "ts_ms": 1_000 * number,
        }
        for number in range(100)
        for type_ in ("content_view", "click")
    ]
    records = [Record("events", 0, at, None, json.dumps(event).encode()) for at, event in enumerate(events)]
    settings = load_settings(Path(config))
    decoder = EventDecoder(settings, None, lambda: 1_000_000)
    source = MemorySource({("events", 0): records})
    assemble(settings, source, decoder, MemoryDeadLetters(), CollectorRegistry()).run()


def main():
    # What a killed process leaves behind becomes a child of this one, which can count it then.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    warm_up(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                run(order)
            except SystemExit as exit_:
                status = exit_.code or 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = wait(pid, order.get("after_seconds"), order["victim"])
        replies.write(json.dumps({"status": status, "n_left": n_left()}) + "\n")
        replies.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
