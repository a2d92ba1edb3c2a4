"""`anabranch evaluate`: a log's quality as tables and as JSON, with options instead of a settings file."""

import gzip
import json
import os

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from cli.evaluate import command
from streamer.simulator import ShopSimulator, SimulatorSettings

app = typer.Typer()
app.command()(command)

SMALL = {
    "ANABRANCH__PROCESSES": "1",
    "ANABRANCH__FEATURES__USERS": "1000",
    "ANABRANCH__FEATURES__ITEMS": "1000",
    "ANABRANCH__FEATURES__PAIRS": "1024",
    "ANABRANCH__FEATURES__VALUES": "1024",
    "ANABRANCH__EMBEDDING__MAX_MIB": "1",
}
METRICS = {"auc", "log_loss", "ne", "calibration", "accuracy", "precision", "recall", "f1"}
SHOP = SimulatorSettings(
    events=1_600,
    n_users=400,
    n_items=400,
    click_rate=0.2,
    purchase_rate=0.4,
    click_window_ms=10_000,
    purchase_window_ms=20_000,
    click_delay_ms=800,
    purchase_delay_ms=1_500,
)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    file = tmp_path_factory.mktemp("log") / "events.jsonl"
    file.write_bytes(b"\n".join(msgspec.json.encode(event) for event in ShopSimulator(SHOP).events()))
    return file


@pytest.fixture(scope="module")
def types(log):
    return [json.loads(line)["type"] for line in log.read_text(encoding="utf-8").splitlines()]


def evaluate(*arguments):
    for name in [name for name in os.environ if name.startswith("ANABRANCH__")]:
        raise AssertionError(f"{name} is set: these tests would test other settings")
    return CliRunner(env=SMALL).invoke(app, [str(argument) for argument in arguments])


def report_of(*arguments):
    result = evaluate(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_without_any_option_it_prints_tables_and_the_fields_it_found(log):
    result = evaluate(log)
    assert result.exit_code == 0, result.output
    assert "item.category" in result.stderr
    assert "item.price" in result.stderr
    for told in ("content_view", "click", "purchase", "oracle", "NE", "HR@10", "1,600 events", "0 rejected"):
        assert told in result.stdout


def test_the_json_goes_to_a_file_beside_the_tables_or_alone_to_standard_output(log, tmp_path, types):
    file = tmp_path / "report.json"
    result = evaluate(log, "--ranking", 0, "--json", file)
    assert (result.exit_code, "1,600 events" in result.stdout) == (0, True)
    written, printed = json.loads(file.read_text(encoding="utf-8")), report_of(log, "--ranking", 0)
    assert (written.pop("seconds") > 0, printed.pop("seconds") > 0) == (True, True)
    assert written == printed
    assert (written["events"], written["rejected"], written["model"]) == (1_600, 0, "mmoe")
    assert list(written["tasks"]) == ["content_view", "click", "purchase"]
    assert written["examples"] == sum(task["examples"] for task in written["tasks"].values())
    for task in ("click", "purchase"):
        found = written["tasks"][task]
        assert (found["examples"], found["positives"]) == (types.count("content_view"), types.count(task))
        assert set(found["all"]) >= METRICS
        assert set(found["last_half"]) >= METRICS
        assert found["ranking"]["events"] == 0


def test_gzip_gives_the_same(log, tmp_path):
    packed = tmp_path / "events.jsonl.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    assert report_of(packed, "--ranking", 0)["tasks"] == report_of(log, "--ranking", 0)["tasks"]


def test_task_keeps_the_types_it_names_and_passes_over_the_rest(log, types):
    report = report_of(log, "--task", "click")
    assert list(report["tasks"]) == ["click"]
    assert report["rejected"] == 0
    assert report["events"] == types.count("content_view") + types.count("click")


def test_a_shorter_window_leaves_fewer_positives(log):
    counted = {
        window: report_of(log, "--task", "click", "--window", f"click={window}")["tasks"]["click"]["positives"]
        for window in ("1s", "10s")
    }
    assert 0 <= counted["1s"] < counted["10s"]


def test_implicit_mode_takes_every_event_for_a_positive(log, types):
    report = report_of(log, "--mode", "implicit", "--ranking", 0)
    for task, found in report["tasks"].items():
        # An event of an item seen for the first time is no example: sampled items can only be known ones.
        assert found["positives"] == types.count(task) - found["ranking"]["new_item_events"]
        assert found["examples"] > found["positives"] > 0


def test_model_and_seed_are_the_ones_asked_for(log):
    first, again, other_seed, other_model = (
        report_of(log, "--ranking", 0, *more)
        for more in ((), ("--seed", 0), ("--seed", 1), ("--model", "shared_bottom"))
    )
    assert other_model["model"] == "shared_bottom"
    assert first["tasks"] == again["tasks"]
    for changed in (other_seed, other_model):
        assert changed["tasks"]["click"]["all"]["log_loss"] != first["tasks"]["click"]["all"]["log_loss"]


def test_ranking_ranks_the_share_it_is_told(log, types):
    def ranked(share):
        found = report_of(log, "--ranking", share)["tasks"]["content_view"]["ranking"]
        return found["events"]

    everything, half = ranked(1), ranked(0.5)
    assert 0 < half < everything <= types.count("content_view")


def test_bad_rows_are_counted_and_one_of_each_kind_is_shown(log, tmp_path):
    damaged = tmp_path / "damaged.jsonl"
    lines = log.read_bytes().splitlines()
    damaged.write_bytes(b"\n".join([*lines[:5], b"no json", *lines[5:300], b'{"event_id": 1}', b"{}"]))
    result = evaluate(damaged, "--json", "-")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["events"], report["rejected"]) == (300, 3)
    assert "rejected 1 × not_json, first at row 5" in result.stderr
    assert "rejected 2 × missing_field, first at row 301" in result.stderr


def test_two_processes_report_the_same_as_one(log, tmp_path, monkeypatch):
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(log.read_bytes().replace(b"\n", b"\nno json\n", 3))
    found = []
    for processes in ("1", "2"):
        monkeypatch.setitem(SMALL, "ANABRANCH__PROCESSES", processes)
        result = evaluate(damaged, "--json", "-")
        assert result.exit_code == 0, result.output
        found.append((json.loads(result.stdout) | {"seconds": 0}, result.stderr))
    assert found[0] == found[1]
    assert "rejected 3 × not_json, first at row 1" in found[1][1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--mapping", "tabao"], "no such mapping"),
        (["--window", "click"], "--window is TASK=DURATION"),
        (["--window", "clik=1s"], "found `clik=1s`"),
        (["--window", "click=soon"], "a duration is a number and a unit"),
        (["--mode", "explicit"], "mode"),
        (["--model", "mmoe2"], "mmoe2"),
        (["--format", "xml"], "xml"),
        (["--seed", "1", "-c", "none.toml"], "none.toml"),
    ],
)
def test_a_mistake_is_one_clear_line(log, arguments, told):
    result = evaluate(log, *arguments)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit), result.output
    assert told in result.stderr.splitlines()[-1]


def test_a_log_that_is_not_there_is_named(tmp_path):
    result = evaluate(tmp_path / "no.jsonl")
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "no.jsonl" in result.stderr


def test_a_variant_is_compared_on_the_same_stream_in_the_same_pass(log):
    plain, alone = report_of(log, "--ranking", 0), report_of(log, "--ranking", 0, "--model", "single_task")
    report = report_of(log, "--ranking", 0, "--compare", "single_task,uncertainty+model.expert_layers=[16, 8]")
    assert report["tasks"] == plain["tasks"], "the base learned something else"
    assert list(report["compare"]) == ["single_task", "uncertainty+model.expert_layers=[16, 8]"]
    for task, found in report["compare"]["single_task"].items():
        difference = found.pop("difference")
        assert found == alone["tasks"][task], "beside the base it learned something else than alone"
        for part in ("all", "last_half"):
            value = difference[part]["ne"]["value"]
            assert value == alone["tasks"][task][part]["ne"] - plain["tasks"][task][part]["ne"]
    click = report["compare"]["single_task"]["click"]
    assert click["all"]["auc"] is not None


def test_a_comparison_is_told_to_people_with_its_interval(log):
    result = evaluate(log, "--ranking", 0, "--compare", "shared_bottom", "--compare", "delay=wait", "--task", "click")
    assert result.exit_code == 0, result.output
    for told in ("Difference to `mmoe`", "shared_bottom", "delay=wait", "ΔNE", "ΔAUC", "last half", " … "):
        assert told in result.stdout


@pytest.mark.parametrize(
    ("compare", "told"),
    [
        ("mmoe2", "no such model or balancing; expected a model (mmoe, ple, shared_bottom, single_task)"),
        ("single_task,model.width=0", "model.width: Input should be greater than or equal to 1 (found 0)"),
        ("model.witdh=8", "`model.witdh` cannot differ on one stream, or is no setting"),
        ("batch.max_rows=100", "`batch.max_rows` cannot differ on one stream"),
        ("negatives.exposure=2", "`negatives.exposure` cannot differ on one stream"),
        ("seed=1", "`seed` cannot differ on one stream"),
        ("tasks.click.window=1h", "`tasks.click.window` cannot differ on one stream"),
        ("tasks.clik.weight=2", "`tasks.clik.weight` cannot differ on one stream"),
        ("tasks.purchase.parent=buy", "found buy as the parent of purchase"),
        ("balancing=fair", "found `fair`, expected one of"),
    ],
)
def test_a_variant_that_cannot_be_is_refused_with_the_reason(log, compare, told):
    result = evaluate(log, "--compare", compare)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit), result.output
    assert told in result.stderr.splitlines()[-1]


def test_a_stream_that_waits_cannot_be_compared_with_one_that_does_not(log, tmp_path):
    config = tmp_path / "waits.toml"
    config.write_text('tasks = [{ name = "click", delay = "wait" }]\nevents = { ignore = ["*"] }\n')
    result = evaluate(log, "-c", config, "--compare", "delay=fnc_in_loss")
    assert (result.exit_code, "compare with `delay=wait`" in result.stderr) == (1, True), result.output


def by_delay(tmp_path, delay, *, wait='wait = "2s", '):
    """A settings file whose outcomes are learned after a wait shorter than their windows."""
    config = tmp_path / f"{delay}.toml"
    outcomes = (("click", "10s"), ("purchase", "20s"))
    tasks = [
        '{ name = "content_view" }',
        *(f'{{ name = "{name}", window = "{window}", {wait}delay = "{delay}" }}' for name, window in outcomes),
    ]
    config.write_text(f"tasks = [{', '.join(tasks)}]\n")
    return config


@pytest.mark.parametrize(("base", "rival"), [("delay_head", "es_dfm"), ("es_dfm", "delay_head")])
def test_a_delay_head_and_es_dfm_are_compared_on_one_stream(log, tmp_path, base, rival):
    plain, alone = (report_of(log, "--ranking", 0, "-c", by_delay(tmp_path, delay)) for delay in (base, rival))
    report = report_of(log, "--ranking", 0, "-c", by_delay(tmp_path, base), "--compare", f"delay={rival}")
    assert plain["tasks"] != alone["tasks"]
    assert report["tasks"] == plain["tasks"], "the base learned something else"
    [found] = report["compare"].values()
    for task in found.values():
        task.pop("difference")
    assert found == alone["tasks"], "beside the base it learned something else than alone"


@pytest.mark.parametrize("delay", ["delay_head", "es_dfm"])
def test_a_delay_that_the_stream_does_not_tell_is_refused(log, delay):
    """Windows of half an hour: the delay itself, with its wait of five minutes, would be fine."""
    windows = [part for task in ("click", "purchase") for part in ("--window", f"{task}=30m")]
    result = evaluate(log, *windows, "--compare", f"delay={delay}")
    assert (result.exit_code, type(result.exception)) == (1, SystemExit), result.output
    told = result.stderr.splitlines()[-1]
    for part in (
        f"--compare delay={delay}",
        "a stream by delay = fnc_in_loss does not tell when the labels of",
        "One stream holds fnc_in_loss and wait",
        "another one delay_head and es_dfm",
        "Else run `evaluate` twice",
    ):
        assert part in told
