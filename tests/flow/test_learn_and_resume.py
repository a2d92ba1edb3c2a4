"""A learner in a group stops, in good order or after damage to its snapshots, and goes on where it stood."""

import json
import shutil
import signal

import pytest

from contracts.settings import load_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.kafka  # on the embedded one: the crash matrix, to the bit
def test_a_second_run_learns_exactly_what_came_after_the_first(apache_kafka, topic, flow, make, produce, stream_of):
    events = make(2_500)
    stream = stream_of(apache_kafka, topic, events)
    flow.configure(stream)
    produce(stream, events[:1_500])
    flow.learn_to_the_end("--json", flow.folder / "report.json")
    first = flow.newest().manifest
    assert (first.n_events, first.offsets) == (1_500, {topic: {"0": 1_500}})

    produce(stream, events[1_500:])
    output = flow.learn_to_the_end("--json", flow.folder / "report.json")
    second = flow.newest().manifest
    assert "1500 events" in output, "it should have told that it starts from the snapshot"
    assert (second.n_events, second.offsets) == (2_500, {topic: {"0": 2_500}})
    assert second.event_time_ms == max(event.ts_ms for event in events)

    report = json.loads((flow.folder / "report.json").read_text(encoding="utf-8"))
    assert (report["events"], report["rejected"]) == (2_500, 0)
    n_views = sum(event.type == "content_view" for event in events)
    for task in ("click", "purchase"):
        quality = report["tasks"][task]
        assert quality["examples"] == n_views
        assert quality["positives"] == sum(event.type == task for event in events)
        # The simulator's own probabilities came along, so the best possible score stands beside it.
        assert 0.5 < quality["all"]["ne"] < 2
        assert quality["oracle"]["ne"] < quality["all"]["ne"]
        assert 0 < quality["list"]["requests"] < n_views


def stopped_by(number, flow, stream, look=lambda: None):
    """Learn for a while, look, and stop well: all that was read is in the snapshot."""
    with flow.learn() as run:
        run.until(lambda: run.consumed() >= 200)
        look()
        run.process.send_signal(number)
        assert run.wait(10) == 0
        stopped_after = int(run.said(r"Stopped after (\d+) events")[1])
    manifest = flow.newest().manifest
    assert manifest.n_events == manifest.offsets[stream.topic]["0"] == stopped_after >= 200


def test_told_to_stop_it_snapshots_all_it_read_and_the_open_batch_goes_on_afterwards(straight, flow, same_state):
    flow.configure(straight.stream, every_events=1_000_000)
    stopped_by(signal.SIGTERM, flow, straight.stream)
    flow.learn_to_the_end()
    same_state(flow.newest(), straight.flow.newest())


@pytest.mark.kafka
def test_told_to_stop_it_leaves_its_group(apache_kafka, topic, flow, make, produce, stream_of, n_members):
    stream = stream_of(apache_kafka, topic, make(500))
    produce(stream, stream.events)
    group = load_settings(flow.configure(stream, every_events=1_000_000)).kafka.group
    found = []
    stopped_by(signal.SIGINT, flow, stream, lambda: found.append(n_members(apache_kafka, group)))
    assert [*found, n_members(apache_kafka, group)] == [1, 0]


def test_a_damaged_newest_snapshot_costs_a_warning_and_the_work_behind_it(straight, flow, same_state):
    shutil.copytree(straight.flow.snapshots, flow.snapshots)
    newest = straight.flow.newest().manifest.version
    file = flow.snapshots / f"v{newest:08d}" / "table.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    flow.configure(straight.stream)
    output = flow.learn_to_the_end()
    assert f"v{newest:08d} is damaged: table.safetensors" in output
    assert f"Using v{newest - 1:08d} instead" in output
    found = flow.newest()
    assert found.manifest.version > newest
    same_state(found, straight.flow.newest())
