"""`anabranch learn` where it cannot start: one clear line and exit code 1, never a traceback."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import typer
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from cli._assembly import assemble
from cli.learn import command
from contracts.records import Record
from contracts.settings import load_settings
from learner.snapshot import SnapshotStore
from streamer.broker import create_topics
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.simulator import ShopSimulator, SimulatorSettings
from streamer.sources.memory import MemorySource

ROOT = Path(__file__).parents[2]
SMALL = """
{more}
[kafka]
bootstrap_servers = "{servers}"
topic = "{topic}"
group = "group-{topic}"
session_timeout = "1s"
[features]
users = 1000
items = 1000
pairs = 1024
values = 1024
[embedding]
max_mib = 1.0
[model]
width = {width}
experts = 2
expert_layers = [8, 6]
[snapshot]
directory = "{directory}"
[metrics]
port = {port}
"""

app = typer.Typer()
app.command()(command)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """The command registers its metrics with the process's registry, which these tests share with others."""
    monkeypatch.setattr("prometheus_client.REGISTRY", CollectorRegistry())


def settings_file(folder, servers="127.0.0.1:1", topic="events", width=4, port=0, more=""):
    file = folder / f"settings-{topic}-{width}.toml"
    text = SMALL.format(
        servers=servers, topic=topic, width=width, port=port, more=more, directory=(folder / "snapshots").as_posix()
    )
    file.write_text(text, encoding="utf-8")
    return file


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", "learn", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def error_of(process):
    """The line the process ended with; log lines may stand before it."""
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


def learned(file, topic="events", registry=None):
    """A snapshot under the file's settings."""
    settings = load_settings(file)
    events = list(ShopSimulator(SimulatorSettings(events=200, n_users=100, n_items=100)).events())
    records = [Record(topic, 0, offset, None, msgspec.json.encode(event)) for offset, event in enumerate(events)]
    with SnapshotStore(Path(settings.snapshot.directory)) as store:
        source = MemorySource({(topic, 0): records})
        decoder = EventDecoder(settings, None, lambda: events[-1].ts_ms)
        assemble(settings, source, decoder, MemoryDeadLetters(), registry or CollectorRegistry(), store=store).run()
    return settings


@pytest.fixture(scope="module", autouse=True)
def waiting(embedded_broker, tmp_path_factory):
    """Learners that wait half a minute for what is not there, beside the other tests: without a broker, a topic."""
    folders = [tmp_path_factory.mktemp(name) for name in ("no-broker", "no-topic")]
    no_broker = started("-c", settings_file(folders[0]))
    no_topic = started("-c", settings_file(folders[1], embedded_broker, "never-made"))
    yield no_broker, no_topic
    for process in (no_broker, no_topic):
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_second_learner_on_the_same_snapshots_is_refused_and_the_first_one_named(embedded_broker, topic, tmp_path):
    create_topics(embedded_broker, {topic: 1})
    file = settings_file(tmp_path, embedded_broker, topic)
    first = started("-c", file)
    try:
        assert first.stderr is not None
        assert any("Learning `" in line for line in first.stderr)
        told = error_of(started("-c", file))
        assert re.search(rf"snapshots is written by .*\b{first.pid}\b", told)
        assert "snapshot.directory" in told
        assert first.poll() is None
    finally:
        first.terminate()
        first.communicate(timeout=60)
    assert first.returncode == 0


def test_a_snapshot_of_other_settings_is_refused_with_both_fingerprints(embedded_broker, topic, tmp_path):
    create_topics(embedded_broker, {topic: 1})
    before = learned(settings_file(tmp_path, embedded_broker, topic), topic)
    file = settings_file(tmp_path, embedded_broker, topic, width=5)
    result = CliRunner().invoke(app, ["-c", str(file), "--until-end"])
    assert result.exit_code == 1
    told = result.stderr.strip().splitlines()[-1]
    assert before.fingerprint() in told
    assert load_settings(file).fingerprint() in told
    assert "snapshot.directory" in told


def test_a_snapshot_of_another_topic_is_refused(embedded_broker, topic, tmp_path):
    create_topics(embedded_broker, {topic: 1})
    learned(settings_file(tmp_path, embedded_broker, topic), "elsewhere")
    result = CliRunner().invoke(app, ["-c", str(settings_file(tmp_path, embedded_broker, topic)), "--until-end"])
    assert result.exit_code == 1
    assert f"offset 200 of `elsewhere`[0] does not fit topic `{topic}`" in result.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[kafka]\ntopik = "x"\n', "kafka.topik"),
        ("[snapshot]\nevery_events = 0\n", "snapshot.every_events"),
        ('mode = "explicit"\n', "mode"),
        ('[model]\nname = "mmoe', "not TOML"),
        ('[events]\nmapping = "tabao"\n', "no such mapping"),
        ('[model]\nname = "mmoe2"\n', "mmoe2"),
    ],
)
def test_settings_that_cannot_be_used_are_told_before_anything_starts(text, told, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(app, ["-c", str(file)])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_settings_file_that_is_not_there_is_named(tmp_path):
    result = CliRunner().invoke(app, ["-c", str(tmp_path / "none.toml")])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "none.toml" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_snapshot_whose_state_this_version_does_not_know_is_refused(embedded_broker, topic, tmp_path):
    create_topics(embedded_broker, {topic: 1})
    file = settings_file(tmp_path, embedded_broker, topic)
    learned(file, topic)
    with SnapshotStore(tmp_path / "snapshots") as store:
        found = store.load()
        del found.groups["join"]["pair"]
        manifest = found.manifest
        store.publish(
            found.groups,
            found.states,
            created_ms=manifest.created_ms,
            event_time_ms=manifest.event_time_ms,
            n_events=manifest.n_events,
            offsets=manifest.resume_offsets,
            settings_fingerprint=manifest.settings_fingerprint,
            tasks=manifest.tasks,
            layout=manifest.layout,
        )
    result = CliRunner().invoke(app, ["-c", str(file), "--until-end"])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "does not hold the state that this version goes on from" in result.stderr
    assert "snapshot.directory" in result.stderr


def test_a_replay_from_a_time_is_refused_over_a_snapshot(tmp_path):
    file = settings_file(tmp_path)
    learned(file)
    result = CliRunner().invoke(app, ["-c", str(file), "--from", "2026-11-01T00:00Z"])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    told = result.stderr.strip().splitlines()[-1]
    assert "--from starts a fresh model, but" in told
    assert "has snapshot v00000001" in told
    assert "snapshot.directory" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--from", "yesterday"], "--from is a time with its zone, such as 2026-11-01T00:00Z; found `yesterday`"),
        (["--from", "2026-11-01T00:00"], "found `2026-11-01T00:00`"),
        (["--from", "2026-11-01T00:00Z", "--standby"], "Leave one of them out"),
    ],
)
def test_options_that_cannot_be_used_are_told_before_anything_starts(options, told, tmp_path):
    result = CliRunner().invoke(app, ["-c", str(settings_file(tmp_path)), *options])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_with_a_share_of_users_prometheus_hears_what_the_tasks_gain(tmp_path):
    for share in (0.0, 1.0):
        registry = CollectorRegistry()
        file = settings_file(tmp_path, topic=f"share-{share}", more=f"evaluation = {{ shadow_share = {share} }}")
        learned(file, registry=registry)
        gain = registry.get_sample_value("anabranch_mtl_gain_ne", {"task": "content_view"})
        assert (gain is not None) == (share > 0)


def test_a_port_for_metrics_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["-c", str(settings_file(tmp_path, port=port))])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert f"127.0.0.1:{port} cannot be listened on" in result.stderr
    assert "metrics.port" in result.stderr


# Last, so that what it waits for has gone by.
@pytest.mark.slow
def test_without_a_broker_or_a_topic_it_gives_up_and_names_what_is_missing(embedded_broker, waiting):
    no_broker, no_topic = waiting
    told = error_of(no_broker)
    assert "No Kafka broker answers at `127.0.0.1:1`" in told
    assert "kafka.bootstrap_servers" in told
    told = error_of(no_topic)
    assert f"Topic `never-made` does not exist at `{embedded_broker}`" in told
    assert "kafka.topic" in told
