"""A task and fields are added to a model that has learned: the procedure of docs/operations.md, by the real command."""

import json
import shutil

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TWO_TASKS = '[{ name = "content_view" }, { name = "click", window = "10s" }]'
LATER_FIELDS = '    { source = "user.country" },\n    { source = "context.position" },\n'


def test_added_tasks_and_fields_are_learned_from_then_on_and_all_else_goes_on(
    embedded_broker, topic, flow, make, produce, stream_of, same_state
):
    events = make(2_500)
    half = 1_500
    stream = stream_of(embedded_broker, topic, events)
    produce(stream, events[:half])
    file = flow.configure(stream, tasks=TWO_TASKS)
    text = file.read_text(encoding="utf-8")
    assert LATER_FIELDS in text
    text = text.replace(LATER_FIELDS, "").replace("[events]\n", '[events]\nignore = ["purchase"]\n')
    file.write_text(text, encoding="utf-8")
    flow.learn_to_the_end()
    before = flow.newest()
    assert before.manifest.tasks == ["content_view", "click"]

    flow.configure(stream)
    produce(stream, events[half:])
    added = "tasks.purchase is new; fields.user.country is new; fields.context.position is new"
    shutil.copytree(flow.snapshots, flow.folder / "old")

    found = []
    for processes in "12":
        shutil.rmtree(flow.snapshots)
        shutil.copytree(flow.folder / "old", flow.snapshots)
        learn = ("learn", "-c", file, "--until-end", "--allow-new-tasks", "--json", flow.folder / "report.json")
        output = flow.run(*learn, environment={"ANABRANCH__PROCESSES": processes})
        assert f"takes up that {added}" in output
        found.append(flow.newest())
    same_state(*found)
    assert found[0].manifest.offsets == {topic: {"0": len(events)}}
    report = json.loads((flow.folder / "report.json").read_text(encoding="utf-8"))["tasks"]
    views = {(event.request_id, event.item_id) for event in events[half:] if event.type == "content_view"}
    n_views = sum(event.type == "content_view" for event in events)
    assert report["click"]["examples"] == n_views
    assert report["click"]["positives"] == sum(event.type == "click" for event in events)
    assert report["purchase"]["examples"] == sum(event.type == "content_view" for event in events[half:])
    assert report["purchase"]["positives"] == sum(
        event.type == "purchase" and (event.request_id, event.item_id) in views for event in events[half:]
    )
    assert 0 < report["purchase"]["all"]["ne"] < 2

    flow.learn_to_the_end()
    assert flow.newest().manifest.n_events == found[0].manifest.n_events
