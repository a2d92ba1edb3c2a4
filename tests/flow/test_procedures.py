"""The procedures of docs/operations.md, run as they are written: their commands are read from the page."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
from kafka import KafkaProducer

from streamer.broker import create_topics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
N_EVENTS, MORE = 1_200, 300
PROCEDURE = re.compile(r"^\*\*(.+?)\*\*(.*?)(?=^\*\*|\Z)", re.MULTILINE | re.DOTALL)
PLAIN = {"ANABRANCH__PROCESSES": "1", "COLUMNS": "200"}  # a process is enough here; tables unbroken
TWO_TASKS = '[{ name = "content_view" }, { name = "click", window = "10s" }]'
LATER_FIELD = '    { source = "context.position" },\n'
# The command itself, but it notices a new partition within half a second instead of a minute.
NOTICING = "import streamer.sources._standing as s; s.METADATA_AGE_MS = 500; from cli.main import app; app()"


def procedures():
    """The text of each, by its title; a row of the page that is broken is one line here."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.partition("## Procedures\n")[2].partition("\n## ")[0]
    return {title: re.sub(r"(?<=\S)\n(?=\S)", " ", text) for title, text in PROCEDURE.findall(section)}


def commands(title, tool="anabranch"):
    """What is in code of a procedure and begins with the tool, as arguments of it, in order."""
    return [shlex.split(found)[1:] for found in re.findall(rf"`({re.escape(tool)} .+?)`", procedures()[title])]


def block(title):
    """The one block of shell of a procedure."""
    return re.search(r"```(.+?)```", procedures()[title], re.DOTALL)[1].strip()


def begin(flow, arguments, **environment):
    return flow.start(*arguments, folder=flow.folder, environment={**PLAIN, **environment})


def to_its_end(flow, arguments):
    with begin(flow, arguments) as run:
        assert run.wait() == 0, run.output
        return run.output


def learned_whole(run):
    """Wait until nothing is left in the topic, then stop it as the page says: SIGTERM, exit code 0."""
    run.until(lambda: run.consumed() > 0 and run.metrics().get("anabranch_consumer_lag_messages") == 0)
    run.stop()


def shell(flow, script):
    """Run a block as it is written; `anabranch` is this source's."""
    tool = flow.folder / "bin" / "anabranch"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m cli.main "$@"\n')
    tool.chmod(0o755)
    path = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-ec", script], cwd=flow.folder, env=path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def narrower(flow, stream):
    """Settings with a task and a field less than the flow's own."""
    file = flow.configure(stream, tasks=TWO_TASKS)
    text = file.read_text(encoding="utf-8")
    assert LATER_FIELD in text
    text = text.replace(LATER_FIELD, "").replace("[events]\n", '[events]\nignore = ["purchase"]\n')
    file.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def learned(embedded_broker, tmp_path_factory, flow_in, make, produce, stream_of):
    """Started, backed up while it ran, and stopped, all as the page says; then more events came."""
    flow = flow_in(tmp_path_factory.mktemp("learned") / "it")
    stream = stream_of(embedded_broker, "procedures", make(N_EVENTS + MORE))
    produce(stream, stream.events[:N_EVENTS])
    narrower(flow, stream)
    (start,) = commands("Start")
    with begin(flow, start) as run:
        run.said("no snapshot yet, from the earliest record")
        run.said(r"assigned procedures\[0\] from the beginning")
        run.until(lambda: run.consumed() > 0 and list(flow.snapshots.glob("LATEST")))
        said = shell(flow, block("Back up"))
        assert re.fullmatch(r"(\d+: ok\n)+", said)
        run.until(lambda: len(list(flow.snapshots.glob("v????????"))) >= 2)
        learned_whole(run)
    assert flow.newest().manifest.offsets == {stream.topic: {"0": N_EVENTS}}
    produce(stream, stream.events[N_EVENTS:])
    return flow, stream


@pytest.fixture
def flow(learned, tmp_path, flow_in):
    """A copy of what was learned and backed up, with settings of its own."""
    original, stream = learned
    shutil.copytree(original.folder, tmp_path / "copy")
    copy = flow_in(tmp_path / "copy")
    narrower(copy, stream)
    return copy


def learned_in_all(flow):
    return flow.newest().manifest.offsets["procedures"]["0"]


def test_every_procedure_of_the_page_is_run_here():
    run_here = {"Start", "Stop", "Standby", "Upgrade", "Roll back", "Add a task or a field", "Replay from a time"}
    assert set(procedures()) == run_here | {"Back up", "Add a partition"}


def test_every_command_for_an_alert_is_run_somewhere(alert_commands):
    """Here, or where the alert's cause is made; those of `docker compose` are compared with its file."""
    here = (
        "kafka-configs.sh",
        "kafka-console-consumer.sh",
        "anabranch check",
        "anabranch resend",
        "anabranch snapshots verify",
    )
    elsewhere = {
        "docker compose": "deploy/test_compose.py",
        "python -c": "learner/test_skipped_batches.py",
        "ANABRANCH__": "flow/test_held_snapshots.py",
    }
    for file in set(elsewhere.values()):
        assert "alert_command" in (ROOT / "tests" / file).read_text(encoding="utf-8")
    beginnings = {one: [known for known in (*here, *elsewhere) if one.startswith(known)] for one in alert_commands}
    assert {one for one, known in beginnings.items() if not known} == set()
    assert {known[0] for known in beginnings.values()} == {*here, *elsewhere}


def test_started_again_it_goes_on_and_a_standby_of_the_next_release_takes_over_when_it_is_stopped(flow):
    (start,), (standby,) = commands("Start"), commands("Standby")
    assert "ANABRANCH__METRICS__PORT=" in procedures()["Standby"]
    with begin(flow, start) as old:
        old.said(r"Learning `.*: snapshot v\d+, \d+ events")
        old.said(rf"assigned procedures\[0\] from {N_EVENTS}")
        with begin(flow, standby, ANABRANCH__METRICS__PORT="0") as new:
            new.said(rf"Standing by: .* is written by process {old.process.pid} on")
            assert new.metrics()["anabranch_standby"] == 1
            learned_whole(old)
            new.said(r"Learning `.*: snapshot v\d+, \d+ events")
            new.stop()
    assert learned_in_all(flow) == N_EVENTS + MORE


def test_rolled_back_the_scorers_follow_and_the_learner_reads_again_what_came_after(flow):
    (look, back), (start,) = commands("Roll back"), commands("Start")
    with flow.start("serve", "-c", flow.config) as serve:
        url = serve.said(r"(http://127\.0\.0\.1:\d+)")[1]

        def served():
            ready = httpx.get(f"{url}/readyz").status_code == 200
            return ready and httpx.get(f"{url}/v1/model").json()["model_version"]

        newest = serve.until(served)
        wanted = newest - 1
        assert re.search(rf"│ +{wanted} │.*│ ok ", to_its_end(flow, look))
        said = to_its_end(flow, [str(wanted) if word == "N" else word for word in back])
        assert f"Version {wanted} is the latest now" in said
        serve.until(lambda: served() == wanted)
        serve.stop()
    assert list(flow.snapshots.glob(f"v{newest:08d}*.rolled-back*"))
    before = flow.newest().manifest.n_events
    with begin(flow, start) as run:
        run.said(rf"Learning `.*: snapshot v{wanted:08d}, {before} events")
        learned_whole(run)
    assert flow.newest().manifest.version > wanted
    assert learned_in_all(flow) == N_EVENTS + MORE


def test_a_task_and_a_field_are_added_and_taken_back_by_restoring_the_backup(learned, flow):
    stream, (once,), (start,) = learned[1], commands("Add a task or a field"), commands("Start")
    backed_up = (flow.folder / "backup" / "LATEST").read_text()[:9]
    old = flow.config.read_text(encoding="utf-8")
    flow.configure(stream)
    with begin(flow, once) as run:
        run.said(r"tasks.purchase is new; fields.context.position is new")
        learned_whole(run)
    assert flow.newest().manifest.tasks == ["content_view", "click", "purchase"]
    with flow.start("serve", "-c", flow.config) as serve:  # restarted with the same settings
        url = serve.said(r"(http://127\.0\.0\.1:\d+)")[1]
        serve.until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        reply = httpx.post(f"{url}/v1/score", json={"user_id": "u1", "items": [stream.events[0].item_id]}).json()
        assert set(reply["items"][0]["probabilities"]) == {"content_view", "click", "purchase"}
        serve.stop()

    shutil.move(flow.snapshots, flow.folder / "set-aside")
    shutil.copytree(flow.folder / "backup", flow.snapshots)
    flow.config.write_text(old, encoding="utf-8")
    with begin(flow, start) as run:
        run.said(rf"Learning `.*: snapshot {backed_up}, \d+ events")
        learned_whole(run)
    assert flow.newest().manifest.tasks == ["content_view", "click"]
    assert learned_in_all(flow) == N_EVENTS + MORE


@pytest.mark.kafka
def test_a_replay_from_a_time_learns_a_fresh_model_of_what_came_since(
    apache_kafka, topic, tmp_path, flow_in, make, stream_of
):
    """The embedded broker does not know the times of records."""
    (replay,), flow, events = commands("Replay from a time"), flow_in(tmp_path / "replay"), make(400)
    stream, begin_ms = stream_of(apache_kafka, topic, events), 1_793_491_200_000
    assert replay[replay.index("--from") + 1] == "2026-11-01T00:00Z"
    create_topics(apache_kafka, {topic: 1})
    producer = KafkaProducer(bootstrap_servers=apache_kafka, enable_idempotence=False)
    for place, event in enumerate(events):  # the last quarter is of that day
        producer.send(topic, msgspec.json.encode(event), timestamp_ms=begin_ms + (place - 300) * 1_000)
    producer.flush()
    producer.close()
    flow.configure(stream)
    with begin(flow, replay) as run:
        run.said("no snapshot yet, from records of 2026-11-01")
        run.until(lambda: run.consumed() == 100)
        run.stop()
    assert flow.newest().manifest.n_events == 100


def test_what_the_alerts_say_of_snapshots_tells_a_whole_store(flow, alert_command):
    assert re.fullmatch(r"(\d+: ok\n)+", to_its_end(flow, shlex.split(alert_command("anabranch snapshots verify"))[1:]))


@pytest.mark.kafka
def test_dead_letters_are_looked_at_then_sent_again_once_their_cause_is_repaired(
    apache_broker, topic, tmp_path, flow_in, make, produce, stream_of, alert_command, alert_commands
):
    """A producer that says `cart`; afterwards the settings ignore it."""
    flow = flow_in(tmp_path / "letters")
    stream = stream_of(apache_broker.bootstrap_servers, topic, make(200))
    produce(stream, stream.events[:100])
    produce(stream, [msgspec.structs.replace(event, type="cart") for event in stream.events[100:103]])
    flow.configure(stream)
    flow.learn_to_the_end()
    here = {"localhost:9092": stream.servers, "events": topic, "events.dead-letters": f"{topic}.dead-letters"}

    def tool(name):
        script, *arguments = shlex.split(alert_command(name))
        assert "localhost:9092" in arguments
        return apache_broker.tool(script, *(here.get(word, word) for word in arguments))

    assert "retention.ms=" in tool("kafka-configs.sh")
    told = tool("kafka-console-consumer.sh")
    assert "anabranch-reason:unknown_type,anabranch-detail:" in told
    assert f"anabranch-topic:{topic},anabranch-partition:0,anabranch-offset:100" in told

    record = told.strip().rpartition("\t")[2]
    good = msgspec.json.encode(stream.events[0]).decode()
    (flow.folder / "records.jsonl").write_text(f"{record}\n{good}\n", encoding="utf-8")
    assert "rejected: unknown_type" in to_its_end(flow, shlex.split(alert_command("anabranch check"))[1:])
    text = flow.config.read_text(encoding="utf-8")
    flow.config.write_text(text.replace("[events]\n", '[events]\nignore = ["cart"]\n'), encoding="utf-8")
    count, some, *_ = [shlex.split(one)[1:] for one in alert_commands if one.startswith("anabranch resend ")]
    assert re.search(r"│ unknown_type +│ +3 │", to_its_end(flow, count))
    assert "mapping" in some
    some = ["unknown_type" if word == "mapping" else word for word in some]
    assert re.search(r"│ unknown_type +│ +3 │", to_its_end(flow, some))
    assert "No dead letters" in to_its_end(flow, some)
    flow.learn_to_the_end()
    assert flow.newest().manifest.offsets == {topic: {"0": 106}}
    assert "No dead letters" in to_its_end(flow, count), "the three are no bad records any more"


@pytest.mark.kafka
def test_a_partition_is_added_while_it_learns_and_is_read_from_its_beginning(
    apache_broker, topic, tmp_path, flow_in, make, produce, stream_of
):
    (alter,), flow, events = commands("Add a partition", "kafka-topics.sh"), flow_in(tmp_path / "wider"), make(400)
    stream = stream_of(apache_broker.bootstrap_servers, topic, events)
    produce(stream, events[:200])
    here = {"localhost:9092": stream.servers, "events": topic, "N": "2"}
    assert set(here) < set(alter)
    flow.configure(stream)
    run = flow.start("learn", "-c", flow.config, environment=PLAIN, program=("-c", NOTICING))
    with run:
        run.until(lambda: run.consumed() == 200)
        apache_broker.tool("kafka-topics.sh", *(here.get(word, word) for word in alter))
        produce(stream, events[200:])  # by a producer that knows both
        run.said(rf"assigned {topic}\[0\] from \d+, {topic}\[1\] from the beginning")
        run.until(lambda: run.consumed() == 400)
        run.stop()
    offsets = flow.newest().manifest.offsets[topic]
    assert sum(offsets.values()) == 400
    assert offsets["1"] > 0
