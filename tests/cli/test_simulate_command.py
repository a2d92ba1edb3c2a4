"""`anabranch simulate`: into a file, into Kafka, in step with the clock."""

import gzip
from pathlib import Path

import msgspec
import pytest
import typer
from kafka import KafkaConsumer
from typer.testing import CliRunner, Result

from cli.simulate import command, paced
from contracts.events import Event
from streamer.simulator import START_MS, ShopSimulator, SimulatorSettings

app = typer.Typer()
app.command()(command)


def simulate(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def events_of(raw: bytes) -> list[Event]:
    return msgspec.json.decode(b"[" + b",".join(raw.splitlines()) + b"]", type=list[Event])


def expected(**settings: object) -> list[Event]:
    return list(ShopSimulator(SimulatorSettings.model_validate(settings)).events())


def test_a_file_holds_the_seeds_events_as_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "shop.jsonl"
    result = simulate("--events", 700, "--seed", 5, "--to", path)
    assert result.exit_code == 0, result.output
    assert events_of(path.read_bytes()) == expected(events=700, seed=5)
    assert "700" in result.output


def test_a_packed_file_is_the_same_every_time(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl.gz"
    for path in (one, two):
        assert simulate("--events", 300, "--to", path).exit_code == 0
    assert len(events_of(gzip.decompress(one.read_bytes()))) == 300
    # The file's own name is in the gzip header.
    assert gzip.decompress(one.read_bytes()) == gzip.decompress(two.read_bytes())


def test_options_shape_the_shop(tmp_path: Path) -> None:
    path = tmp_path / "shop.jsonl"
    options = ("--duration", "3m", "--rate", 20, "--users", 500, "--items", 200, "--change-at", "90s", "--to", path)
    assert simulate(*options).exit_code == 0
    shop = {"duration_ms": 180_000, "rate": 20, "n_users": 500, "n_items": 200, "change_at_ms": 90_000}
    assert events_of(path.read_bytes()) == expected(**shop)


def test_events_reach_the_topic_in_each_users_order(embedded_broker: str, topic: str) -> None:
    result = simulate("--events", 400, "--kafka", embedded_broker, "--topic", topic, "--partitions", 2)
    assert result.exit_code == 0, result.output
    consumer = KafkaConsumer(
        topic, bootstrap_servers=embedded_broker, auto_offset_reset="earliest", consumer_timeout_ms=3000
    )
    found = [msgspec.json.decode(message.value, type=Event) for message in consumer]
    consumer.close()
    made = expected(events=400)
    assert sorted(str(event.event_id) for event in found) == sorted(str(event.event_id) for event in made)
    for user in {event.user_id for event in made}:
        assert [e.event_id for e in found if e.user_id == user] == [e.event_id for e in made if e.user_id == user]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--events", 5), "--to FILE or --kafka"),
        (("--events", 5, "--to", "a", "--kafka", "b:1"), "--to FILE or --kafka"),
        (("--to", "-"), "--events N or --duration"),
        (("--events", 5, "--to", "-", "--rate", 0), "rate: Input should be greater than 0"),
        (("--duration", "soon", "--to", "-"), "a duration is a number and a unit"),
        (("--events", 5, "--to", "/no/such/folder/x.jsonl"), "No such file"),
    ],
)
def test_a_mistake_is_told_with_the_way_out(arguments: tuple[object, ...], told: str) -> None:
    result = simulate(*arguments)
    assert result.exit_code == 1
    assert told in result.output
    assert "Traceback" not in result.output


def test_live_events_come_when_their_time_has_come() -> None:
    now_ms = START_MS - 50
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now_ms
        slept.append(seconds)
        now_ms += round(seconds * 1000)

    for event in paced(iter(expected(events=300)), lambda: now_ms, sleep):
        assert event.ts_ms <= now_ms
    assert slept
    assert now_ms == expected(events=300)[-1].ts_ms


def test_live_starts_now(tmp_path: Path) -> None:
    path = tmp_path / "shop.jsonl"
    assert simulate("--live", "--events", 20, "--rate", 100_000, "--to", path).exit_code == 0
    events = events_of(path.read_bytes())
    assert len(events) == 20
    assert events[0].ts_ms > START_MS + 1_000_000
