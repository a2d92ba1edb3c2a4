"""`anabranch check`: what it says of settings, mappings and logs, and its exit code."""

import gzip
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from cli.check import command
from contracts.settings import Settings

app = typer.Typer()
app.command()(command)


def check(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def written(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


EVENTS = [
    '{"event_id":1,"type":"content_view","user_id":"[bold]u","item_id":"i1","ts_ms":1700000000000,"item":{"price":1.5}}',
    '{"event_id":2,"type":"click","user_id":"u","item_id":"i2","ts_ms":1700000000001,"item":{"price":2.5},"value":3}',
    '{"event_id":3,"type":"wishlist","user_id":"u","item_id":"i2","ts_ms":1700000000002}',
    "not json",
]


def test_without_anything_the_defaults_are_read_aloud() -> None:
    result = check()
    assert result.exit_code == 0, result.output
    for word in ("exposure", "content_view", "click", "purchase", "30m", "1d", "mmoe", "localhost:9092"):
        assert word in result.output
    assert "Other than the defaults" not in result.output


def test_settings_that_differ_are_shown_beside_the_defaults(tmp_path: Path) -> None:
    config = written(
        tmp_path / "c.toml",
        'fields = [{ source = "item.price", kind = "numeric" }]\n[events]\nlateness = "90s"\n[batch]\nmax_rows = 77\n',
    )
    result = check("-c", config)
    assert result.exit_code == 0, result.output
    for word in ("events.lateness", "90s", "0ms", "batch.max_rows", "77", "1024", "item.price", "numeric"):
        assert word in result.output
    assert "kafka.topic" not in result.output


def test_the_memory_is_shown_part_by_part_with_its_sum_and_cap(tmp_path: Path) -> None:
    shown = check().output
    for part, value, each, mib in (
        ("embedding.max_mib", "256 MiB", "", "262.0"),
        ("features.users", "200,000", "372", "71.0"),
        ("events.max_open", "2,000,000", "613", "1,168.7"),
        ("memory.max_mib", "none", "", "1,851.0"),
    ):
        [row] = [line for line in shown.splitlines() if part in line]
        assert [cell.strip() for cell in row.split("│")[2:6]] == [part, value, each, mib]
    assert "Copies for snapshots come on top: at most " in shown
    config = written(tmp_path / "c.toml", "[memory]\nmax_mib = 500\n[features]\nusers = 50_000\n")
    [row] = [line for line in check("-c", config).output.splitlines() if "│ memory.max_mib" in line and "all" in line]
    assert "500 MiB" in row
    assert 490 < float(row.split("│")[5]) <= 500


def test_every_mistake_in_settings_and_mapping_is_told_with_its_path(tmp_path: Path) -> None:
    config = written(tmp_path / "c.toml", "[batch]\nmax_rows = 0\n[kafka]\ntopik = 'x'\n")
    mapping = written(tmp_path / "m.toml", 'user_id = "u"\n')
    result = check("-c", config, "-m", mapping)
    assert result.exit_code == 1
    for word in (f"{config}: batch.max_rows", f"{config}: kafka.topik", f"{mapping}: item_id: Field required"):
        assert word in result.output


def test_an_unknown_component_is_a_mistake_too(tmp_path: Path) -> None:
    config = written(tmp_path / "c.toml", '[model]\nname = "mmoe2"\n[evaluation]\ndetector = "adwin2"\n')
    result = check("-c", config)
    assert result.exit_code == 1
    assert "model.name: unknown component `mmoe2`, expected one of" in result.output
    assert "evaluation.detector: unknown component `adwin2`" in result.output


def test_a_mapping_named_by_the_settings_is_read(tmp_path: Path) -> None:
    result = check("-c", written(tmp_path / "c.toml", '[events]\nmapping = "tabao"\n'))
    assert result.exit_code == 1
    assert "tabao: no such mapping" in result.output


def test_the_first_rows_are_shown_raw_and_as_events_with_counts_and_reasons(tmp_path: Path) -> None:
    result = check(written(tmp_path / "log.jsonl", "\n".join(EVENTS)), "--rows", "3")
    assert result.exit_code == 0, result.output
    for word in (
        '"event_id":1',
        "content_view, user [bold]u, item i1, 2023-11-14T22:13:20.000+00:00, item.price=1.5",
        "value 3",
        "rejected: unknown_type",
        "rejected: not_json",
        "row 2: Event type `wishlist` belongs to no task",
        "row 3: ",
    ):
        assert word in " ".join(result.output.split()), word


def test_fields_are_suggested_as_toml_that_the_settings_take(tmp_path: Path) -> None:
    log = written(tmp_path / "log.jsonl", "\n".join(EVENTS))
    result = check(log)
    block = result.output[result.output.index("[[fields]]") :]
    assert [(field.source, field.kind) for field in Settings.model_validate(tomllib.loads(block)).fields] == [
        ("item.price", "numeric")
    ]
    config = written(tmp_path / "c.toml", block)
    assert "[[fields]]" not in check(log, "-c", config).output


@pytest.mark.parametrize("header", ["user_id,item_id,category_id,behavior,timestamp\n", ""])
def test_a_foreign_log_is_read_with_and_without_its_header(tmp_path: Path, header: str) -> None:
    log = tmp_path / "log.csv.gz"
    log.write_bytes(
        gzip.compress(f"{header}1,2,3,pv,1511658000\n1,2,3,fav,1511658001\n1,2,3,buy,1511658002\n".encode())
    )
    result = check(log, "-m", "taobao")
    assert result.exit_code == 0, result.output
    assert "implicit" in result.output
    assert "rejected" not in result.output
    assert "purchase, user 1, item 2, 2017-11-26T01:00:02.000+00:00, item.category='3'" in result.output
    assert "ignored" in result.output


def test_a_log_in_an_unusual_suffix_is_read_when_its_format_is_given(tmp_path: Path) -> None:
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t5\t881250949\n"
    result = check(written(tmp_path / "ml.inter", inter), "-m", "movielens", "--format", "tsv")
    assert result.exit_code == 0, result.output
    assert "like, user 196" in result.output


def test_a_log_of_which_no_row_can_be_read_is_an_error(tmp_path: Path) -> None:
    result = check(written(tmp_path / "log.csv", "user,item\n1,2\n"))
    assert result.exit_code == 1
    assert "--mapping" in result.output


def test_a_missing_log_is_told(tmp_path: Path) -> None:
    result = check(tmp_path / "no.jsonl")
    assert result.exit_code == 1
    assert "no.jsonl" in result.output
    assert "Traceback" not in result.output


def test_flags_that_no_task_asks_for_are_told(tmp_path: Path) -> None:
    config = written(tmp_path / "c.toml", 'mode = "implicit"\ntasks = [{ name = "content_view" }]\n')
    assert "no task asks for; left out: like" in check("-c", config, "-m", "movielens").output
