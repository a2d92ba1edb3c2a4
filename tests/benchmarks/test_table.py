"""The one table of `make bench`."""

import inspect
from pathlib import Path

import pytest

from benchmarks.__main__ import load, names
from benchmarks.figures import Figure, in_turn, shares, show
from benchmarks.pipeline import Span
from benchmarks.zipf_log import write_zipf_log, zipf_settings
from contracts.records import Record
from streamer.decode import EventDecoder

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_each_benchmark_is_in_the_table_and_in_the_readme() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(names()) == len(list(FOLDER.glob("bench_*.py")))
    for name in names():
        module = load(name)
        assert module.TITLE, name
        required = [
            one
            for one in inspect.signature(module.figures).parameters.values()
            if one.default is inspect.Parameter.empty
        ]
        assert not required, name
        assert f"`{name}`" in readme, name


def test_what_could_not_be_measured_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    show({"part": [Figure("rival", [], "events/s", note="not installed: install it")]})
    printed = capsys.readouterr().out
    assert "rival" in printed
    assert "* not installed: install it" in printed


def test_the_warm_up_is_no_run() -> None:
    calls: list[str] = []
    found = in_turn(
        {"a": lambda: calls.append("a") or len(calls), "b": lambda: calls.append("b") or len(calls)}, runs=2
    )
    assert calls == ["a", "b"] * 3
    assert found == {"a": [3, 5], "b": [4, 6]}


def test_a_share_is_taken_within_each_turn_and_not_of_the_medians() -> None:
    found = {"few": [200.0, 100.0, 400.0], "all": [120.0, 80.0, 100.0], "fewer": [240.0, 160.0, 200.0]}
    [of_few, of_fewer] = shares(found, "all", {"all, of few": "few", "all, of fewer": "fewer"})
    assert (of_few.what, list(of_few.values), of_few.unit) == ("all, of few", [60.0, 80.0, 25.0], "%")
    assert (of_fewer.what, list(of_fewer.values)) == ("all, of fewer", [50.0] * 3)


def test_shares_of_runs_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="longer than argument 1"):
        shares({"few": [1.0, 2.0], "all": [1.0]}, "all", {"all, of few": "few"})


def test_a_rate_counts_neither_start_up_nor_the_first_batch_nor_the_wait_for_the_end() -> None:
    span = Span(iter([10.0, 12.0, 15.0]).__next__)
    for n_events in (1000, 1500, 1500):
        span.see(n_events)
    assert span.events_per_second == 500 / 2


def test_a_rate_of_one_look_is_refused() -> None:
    span = Span()
    span.see(10)
    with pytest.raises(RuntimeError, match="give more events"):
        _ = span.events_per_second


@pytest.mark.parametrize("n_ids", [100, 5000])
def test_a_zipf_log_is_in_order_and_holds_each_id(tmp_path: Path, n_ids: int) -> None:
    path = tmp_path / "log.jsonl"
    n_distinct = write_zipf_log(path, 5000, n_ids)
    decoder = EventDecoder(zipf_settings(), None, lambda: 1 << 52)
    lines = path.read_bytes().splitlines()
    events = [event for row, line in enumerate(lines) for event in decoder.decode(Record("log", 0, row, None, line))]
    assert [event.ts_ms for event in events] == sorted(event.ts_ms for event in events)
    assert abs(len(events) - 5000) < 100
    assert len({event.user_id for event in events}) + len({event.item_id for event in events}) == n_distinct == n_ids
