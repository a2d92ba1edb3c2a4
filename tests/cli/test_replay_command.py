"""`anabranch replay`: a log in, canonical events in Kafka, bad rows counted."""

from pathlib import Path

import msgspec
import typer
from kafka import KafkaConsumer
from typer.testing import CliRunner, Result

from cli.replay import command
from contracts.events import Event

app = typer.Typer()
app.command()(command)

LOG = """user_id,item_id,category_id,behavior,timestamp
1,10,7,pv,1511658000
1,10,7,fav,1511658001
2,11,7,cart,1511658002
2,11,7,sell,1511658003
2,11,7,buy,later
1,12,8,buy,1511658004
"""


def replay(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def published(bootstrap_servers: str, topic: str) -> list[Event]:
    consumer = KafkaConsumer(
        topic, bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest", consumer_timeout_ms=3000
    )
    found = [msgspec.json.decode(message.value, type=Event) for message in consumer]
    consumer.close()
    return found


def test_a_foreign_log_becomes_canonical_events(embedded_broker: str, topic: str, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(LOG, encoding="utf-8")
    result = replay(log, "-m", "taobao", "--kafka", embedded_broker, "--topic", topic, "--partitions", 1)
    assert result.exit_code == 0, result.output
    events = published(embedded_broker, topic)
    assert [(event.type, event.user_id, event.item_id, event.ts_ms) for event in events] == [
        ("content_view", "1", "10", 1_511_658_000_000),
        ("click", "2", "11", 1_511_658_002_000),
        ("purchase", "1", "12", 1_511_658_004_000),
    ]
    assert events[0].item == {"category": "7"}
    for told in (
        "6 rows read, 3 events published",
        "2 rejected",
        "unknown_type: 1, such as row 3",
        "mapping: 1, such as row 4",
    ):
        assert told in result.output


def test_broker_and_topic_come_from_the_settings(embedded_broker: str, topic: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(
        msgspec.json.encode(Event(event_id=1, type="like", user_id=1, item_id=2, ts_ms=1_700_000_000_000))
        + b"\nbroken\n"
    )
    config = tmp_path / "c.toml"
    config.write_text(
        f'tasks = [{{ name = "like" }}]\n[kafka]\nbootstrap_servers = "{embedded_broker}"\ntopic = "{topic}"\n',
        encoding="utf-8",
    )
    result = replay(log, "-c", config, "--rate", 1000)
    assert result.exit_code == 0, result.output
    assert [event.type for event in published(embedded_broker, topic)] == ["like"]
    assert "not_json: 1" in result.output


def test_mistakes_are_told_before_any_broker_is_asked(tmp_path: Path) -> None:
    missing = replay(tmp_path / "no.jsonl", "--kafka", "localhost:1")
    assert (missing.exit_code, "no.jsonl" in missing.output) == (1, True)
    unknown = replay(tmp_path / "no.jsonl", "-m", "tabao", "--kafka", "localhost:1")
    assert (unknown.exit_code, "no such mapping" in unknown.output) == (1, True)
