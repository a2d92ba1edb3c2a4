"""`anabranch learn --standby` takes over when the learner ends, and a learner that lost its place is kept from it."""

import re
import signal
from contextlib import ExitStack

import pytest

from learner.snapshot import LOCK, SnapshotStore

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]


def resumed_at(run):
    """The events in the snapshot that a run goes on from."""
    return int(run.said(r"Learning `.*: (?:no snapshot yet|snapshot v\d+, (\d+) events)")[1] or 0)


def test_a_standby_takes_over_from_a_killed_learner_and_comes_to_the_same_bits(
    apache_kafka, topic, flow, undisturbed, produce, stream_of, load, same_state
):
    reference, expected = undisturbed
    n_events = len(reference.events)
    stream = stream_of(apache_kafka, topic, reference.events)
    produce(stream, stream.events[:100])
    flow.configure(stream, every_events=300)
    # Longer than anybody waits here: the dead member is taken out of the group.
    long = {"ANABRANCH__KAFKA__SESSION_TIMEOUT": "5m"}
    with flow.start("learn", "-c", flow.config, environment=long) as owner:
        owner.said("Learning `")
        with flow.start("learn", "-c", flow.config, "--standby", environment=long) as standby:
            standby.said(rf"Standing by: .* is written by process {owner.process.pid} on")
            assert standby.metrics()["anabranch_standby"] == 1
            load(stream, 100, n_events)
            owner.until(lambda: owner.consumed() >= 1_000)
            owner.kill()
            n_resumed = resumed_at(standby)
            assert 0 < n_resumed < n_events
            assert standby.metrics()["anabranch_standby"] == 0
            standby.until(lambda: standby.consumed() >= n_events - n_resumed)
            standby.stop()
    same_state(flow.newest(), expected, topic, reference.topic)


def test_a_learner_that_lost_its_lock_while_it_stood_still_ends_with_an_error_and_publishes_nothing(
    apache_kafka, topic, flow, undisturbed, produce, stream_of, load, same_state
):
    """A machine that freezes, on a network file system that then gives its lock to the next one."""
    reference, expected = undisturbed
    n_events = len(reference.events)
    stream = stream_of(apache_kafka, topic, reference.events)
    produce(stream, stream.events[:100])
    flow.configure(stream, every_events=300, every="2s")
    with ExitStack() as stack:
        alone = {"ANABRANCH__PROCESSES": "1"}
        owner = stack.enter_context(flow.start("learn", "-c", flow.config, environment=alone))
        owner.said("Learning `")
        standby = stack.enter_context(flow.learn("--standby"))
        standby.said(rf"Standing by: .* is written by process {owner.process.pid} on")
        loading = load(stream, 100, 2_500)
        owner.until(lambda: owner.consumed() >= 1_000)
        owner.process.send_signal(signal.SIGSTOP)
        token = (flow.snapshots / LOCK).read_bytes()
        (flow.snapshots / LOCK).unlink()
        (flow.snapshots / LOCK).write_bytes(token)
        n_resumed = resumed_at(standby)
        loading.join()
        standby.until(lambda: standby.consumed() >= 2_500 - n_resumed)
        owner.process.send_signal(signal.SIGCONT)
        load(stream, 2_500, n_events)
        assert owner.wait() == 1
        told = f"was taken from this process (pid {owner.process.pid}): LOCK names process {standby.process.pid} on"
        assert told in owner.output
        assert "Traceback" not in owner.output
        standby.until(lambda: standby.consumed() >= n_events - n_resumed)
        standby.stop()
    same_state(flow.newest(), expected, topic, reference.topic)
    store = SnapshotStore(flow.snapshots)
    assert [store.verify(version) for version in store.versions()] == [[] for _ in store.versions()]


def test_a_standby_that_is_asked_to_stop_exits_well(flow, stream_of):
    flow.configure(stream_of("127.0.0.1:1", "nowhere", []))
    with SnapshotStore(flow.snapshots), flow.learn("--standby") as standby:
        standby.said("Standing by: ")
        assert standby.metrics()["anabranch_standby"] == 1
        standby.stop()
    assert re.search(r"Asked to stop while standing by\.", standby.output)
