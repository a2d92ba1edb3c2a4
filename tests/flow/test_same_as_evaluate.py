"""A log gives the same quality through Kafka as from its file: `evaluate` and `learn` are one code."""

import gzip
import json
import os
from itertools import islice
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ANABRANCH_DATA", ROOT.parent / "shared" / "data"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_simulated_events_from_a_file_and_from_kafka(straight, tmp_path):
    log = tmp_path / "events.jsonl"
    log.write_bytes(b"\n".join(msgspec.json.encode(event) for event in straight.stream.events))
    flow = straight.flow
    output = flow.run("evaluate", log, "-c", flow.config, "--ranking", 0, "--json", "-")
    report = json.loads(output.splitlines()[-1])
    assert report["tasks"] == straight.report["tasks"]
    assert report["events"] == straight.report["events"] == len(straight.stream.events)


@pytest.mark.parametrize(
    ("name", "path", "tasks"),
    [
        pytest.param("taobao", "taobao/UserBehavior.csv.gz", ["content_view", "click", "purchase"], id="taobao"),
        pytest.param("open_bandit", "open_bandit/random/all.csv.gz", ["content_view", "click"], id="open_bandit"),
    ],
)
def test_a_real_log_from_its_file_and_replayed_through_kafka(name, path, tasks, embedded_broker, topic, flow):
    if not (DATA / path).exists():
        pytest.skip(f"{path} is not at {DATA}: set ANABRANCH_DATA to the folder of public logs")
    log = flow.folder / "log.csv"
    with gzip.open(DATA / path, "rt", encoding="utf-8") as lines:
        log.write_text("".join(islice(lines, 3_001)), encoding="utf-8")
    config = ROOT / "examples" / f"{name}.toml"
    environment = {
        "ANABRANCH__KAFKA__BOOTSTRAP_SERVERS": embedded_broker,
        "ANABRANCH__KAFKA__TOPIC": topic,
        "ANABRANCH__KAFKA__GROUP": f"group-{topic}",
        "ANABRANCH__KAFKA__SESSION_TIMEOUT": "1s",
        "ANABRANCH__SNAPSHOT__DIRECTORY": str(flow.snapshots),
        "ANABRANCH__METRICS__PORT": "0",
        "ANABRANCH__TRAIN__THREADS": "1",
    }
    from_file = flow.folder / "file.json"
    arguments = ["evaluate", log, "-m", name, "-c", config, "--ranking", 0, "--json", from_file]
    with flow.start(*arguments, environment=environment) as evaluate:
        flow.run("replay", log, "-m", name, "-c", config, "--partitions", 1, environment=environment)
        output = flow.run("learn", "-c", config, "--until-end", "--json", "-", environment=environment)
        assert evaluate.wait() == 0, evaluate.output
    expected = json.loads(from_file.read_text(encoding="utf-8"))
    report = json.loads(output.splitlines()[-1])
    assert report["events"] == expected["events"] >= 2_900
    assert report["tasks"] == expected["tasks"]
    assert list(report["tasks"]) == tasks
    assert all(found["positives"] > 0 for found in report["tasks"].values())
