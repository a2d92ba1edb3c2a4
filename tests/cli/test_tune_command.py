"""`anabranch tune`: searches, goes on after a stop, writes a file that works, says how sure it is."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import optuna
import pytest

from cli._study import Study, _difference
from cli._trials import Choice, Experiment, Range, load_space
from contracts.settings import EvaluationSettings, SettingsError, load_settings
from streamer.simulator import ShopSimulator, SimulatorSettings

SHOP = SimulatorSettings(
    events=3_000,
    n_users=200,
    n_items=200,
    click_rate=0.2,
    purchase_rate=0.4,
    click_window_ms=10_000,
    purchase_window_ms=20_000,
    click_delay_ms=800,
    purchase_delay_ms=1_500,
)
# What the search starts from jumps about: any trial is better.
START = """# Mine.
[train]
learning_rate = 0.5  # far too much

[embedding]
learning_rate = 1.0
max_mib = 1

[features]
users = 1000
items = 1000
pairs = 1024
values = 1024
"""
SPACE = """
"train.learning_rate" = { low = 1e-3, high = 1e-2, log = true }
"embedding.learning_rate" = { low = 1e-2, high = 1e-1, log = true }
"model.width" = [4, 8]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    events = b"\n".join(msgspec.json.encode(event) for event in ShopSimulator(SHOP).events())
    (folder / "events.jsonl").write_bytes(events)
    (folder / "start.toml").write_text(START)
    (folder / "space.toml").write_text(SPACE)
    return folder


def arguments(*more, study="tune.db", out="tuned.toml", log="events.jsonl"):
    given = [log, "-c", "start.toml", "--space", "space.toml", "--study", study, "-o", out]
    return [sys.executable, "-m", "cli.main", "tune", *given, *map(str, more)]


def tune(folder, *more, **kwargs):
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    return subprocess.run(
        arguments(*more, **kwargs),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def finished(file):
    with sqlite3.connect(file) as database:
        return database.execute("SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')").fetchone()[0]


def test_it_writes_better_settings_and_goes_on_where_it_was_stopped(folder):
    first = tune(folder, "--trials", 2, "--jobs", 2, "--seeds", 2)
    assert first.returncode == 0, first.stderr
    n_first = finished(folder / "tune.db")
    assert n_first in (2, 3)  # two processes may both be in their last
    text = (folder / "tuned.toml").read_text()
    assert "# far too much" in text  # comments are kept
    settings = load_settings(folder / "tuned.toml")
    assert 1e-3 <= settings.train.learning_rate <= 1e-2
    assert settings.model.width in (4, 8)
    assert (settings.features.users, settings.embedding.max_mib) == (1000, 1)
    assert settings.fields  # those that were inferred from the first rows
    assert "2 fresh seeds" in first.stdout
    assert "better" in first.stdout

    again = tune(folder, "--trials", 4, "--jobs", 1, "--seeds", 1)
    assert again.returncode == 0, again.stderr
    assert finished(folder / "tune.db") == 4
    assert "as they are\n" not in again.stderr  # the start was not learned again
    assert again.stderr.count("trial ") == 4 - n_first
    assert "not sure" in again.stdout  # with one seed, nobody is


def test_it_can_search_by_ndcg(folder):
    """Of a shop with more items: nothing is ranked before two hundred are known."""
    shop = SHOP.model_copy(update={"n_items": 400})
    (folder / "wide.jsonl").write_bytes(
        b"\n".join(msgspec.json.encode(event) for event in ShopSimulator(shop).events())
    )
    found = tune(
        folder,
        *("--metric", "ndcg", "--trials", 2, "--jobs", 1, "--seeds", 1),
        study="ndcg.db",
        out="by_ndcg.toml",
        log="wide.jsonl",
    )
    assert found.returncode == 0, found.stderr
    assert "ndcg" in found.stdout
    settings = load_settings(folder / "by_ndcg.toml")
    assert 1e-3 <= settings.train.learning_rate <= 1e-2
    assert settings.model.width in (4, 8)


def test_a_log_too_short_to_rank_says_how_to_go_on(folder):
    found = tune(folder, "--metric", "ndcg", "--trials", 1, "--jobs", 1, study="short.db")
    assert found.returncode != 0
    said = " ".join(found.stderr.split())
    assert "begins when 200 items are known" in said
    assert "--metric ne" in said


@pytest.mark.parametrize(("metric", "start", "best"), [("ne", 0.6, 0.5), ("ndcg", 0.6, 0.7)])
def test_of_entropy_the_least_is_the_best_and_of_ndcg_the_greatest(folder, tmp_path, monkeypatch, metric, start, best):
    monkeypatch.setattr(Experiment, "begin", lambda self, _: (self, start))
    experiment = Experiment(
        folder / "start.toml", None, folder / "events.jsonl", None, (), EvaluationSettings(), metric
    )
    study = Study(tmp_path / "study.db", experiment, {"model.width": Choice((4, 5, 6))}, 0.5)
    assert study.best == ({}, start)
    for width, value in ((4, start), (5, 0.5), (6, 0.7)):
        study._study.add_trial(
            optuna.trial.create_trial(
                params={"model.width": width},
                distributions={"model.width": optuna.distributions.CategoricalDistribution((4, 5, 6))},
                value=value,
            )
        )
    assert study.best == ({"model.width": {0.5: 5, 0.7: 6}[best]}, best)


def test_an_interrupt_keeps_the_trials_and_says_how_to_go_on(folder):
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(
        arguments("--trials", 1000, "--jobs", 1, study="stopped.db"),
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    with process.stderr as told:
        for line in told:
            if line.startswith("trial "):
                break
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        rest = told.read()
    assert process.wait(30) == 1
    assert "Stopped. The trials so far are kept in stopped.db" in rest
    assert "Traceback" not in rest
    assert finished(folder / "stopped.db") >= 1


def test_a_study_of_another_experiment_is_refused(folder):
    experiment = Experiment(folder / "start.toml", None, folder / "events.jsonl", None, (), EvaluationSettings(), "ne")
    space = {"model.width": Choice((4, 8))}
    study = Study(folder / "mine.db", experiment, space, 0.5)
    assert 0 < study.experiment.n_events < 3_000
    with pytest.raises(SettingsError, match=r"another share"):
        Study(folder / "mine.db", experiment, space, 0.6)
    with pytest.raises(SettingsError, match=r"another space.*Give another --study"):
        Study(folder / "mine.db", experiment, {"model.width": Choice((4,))}, 0.5)
    assert Study(folder / "mine.db", experiment, space, 0.5).experiment == study.experiment


def test_what_confirms_is_measured_on_the_rest_of_the_log_alone(folder):
    experiment = Experiment(folder / "start.toml", None, folder / "events.jsonl", None, (), EvaluationSettings(), "ne")
    begun, _ = experiment.begin(0.5)
    rest = begun.confirm({"train.learning_rate": 3e-3, "embedding.learning_rate": 0.05}, seed=1)
    whole = Experiment(**{**begun.__dict__, "n_events": 10**9}).confirm(
        {"train.learning_rate": 3e-3, "embedding.learning_rate": 0.05}, seed=1
    )
    # The model learns: on the rest alone it is better than on the whole, where it began from nothing.
    assert rest["content_view"] < whole["content_view"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('"tasks.window" = ["1h"]', "change what is measured"),
        ('"model.width" = 8', "a list of values"),
        ('"model.width" = { low = 8, high = 4 }', "low below high"),
        ('"train.learning_rate" = { low = 0.0, high = 1.0, log = true }', "above 0"),
        ("", "names nothing to search"),
        ("model.width = ", "cannot be read as TOML"),
    ],
)
def test_a_space_that_cannot_be_is_refused(tmp_path, text, told):
    file = tmp_path / "space.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=told):
        load_space(file)


def test_a_value_that_breaks_a_rule_of_the_settings_is_told_before_anything_is_learned(folder):
    (folder / "bad.toml").write_text('"model.width" = [8, 0]')
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    found = subprocess.run(
        [sys.executable, "-m", "cli.main", "tune", "events.jsonl", "--space", "bad.toml", "--study", "bad.db"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert found.returncode == 1
    assert "model.width" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (folder / "bad.db").exists()


def test_tables_and_dotted_keys_say_the_same(tmp_path):
    file = tmp_path / "space.toml"
    file.write_text("[train]\nlearning_rate = { low = 1e-4, high = 1e-2, log = true }\n[model]\nwidth = [4, 8]\n")
    assert load_space(file) == {"train.learning_rate": Range(1e-4, 1e-2, log=True), "model.width": Choice((4, 8))}


def test_the_interval_is_the_paired_t_interval():
    found = _difference([1.0, 2.0, 3.0], [1.1, 2.2, 3.3])
    assert found.mean == pytest.approx(0.2)
    # t(0.975, 2) = 4.3027; the standard error of .1, .2, .3 is .1/√3.
    assert found.half_width == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert _difference([None], [1.0]).mean is None
    assert _difference([1.0], [1.1]).half_width is None
