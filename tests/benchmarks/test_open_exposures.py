"""Ever more exposures stay open: each is open or counted, and a cap that does not hold is found."""

import pytest

from benchmarks.open_exposures import Learned, learned, memory_problems, planned_mib, problems, rows, settings_of
from contracts.memory import MIB, snapshot_bytes
from streamer import pipeline

MAX_OPEN, N_EXPOSURES, N_ROWS = 20_000, 60_000, 6


@pytest.mark.slow
@pytest.mark.parametrize("one", ["", "user", "item"])
def test_each_exposure_is_open_or_given_up_and_the_state_takes_what_is_planned(one):
    settings = settings_of(MAX_OPEN)
    found = list(rows(settings, N_EXPOSURES, N_ROWS, one))
    assert [row["exposures read"] for row in found] == sorted({row["exposures read"] for row in found})
    assert found[-1]["exposures read"] == N_EXPOSURES
    for row in found:
        assert row["open"] + row["exposures given up"] == row["exposures read"]
        assert row["open"] == min(row["exposures read"], MAX_OPEN)
        assert 0 < row["state, MiB"] <= planned_mib(settings)
    # So few say little of what the process holds as a whole: buffers of batches still grow.
    told = problems([{**row, "resident, MiB": 1.0} for row in found], MAX_OPEN, planned_mib(settings))
    assert told == []


@pytest.mark.slow
def test_a_cap_that_is_not_enforced_is_found(monkeypatch):
    """The join is told of another cap than the settings say."""
    joiner = pipeline.Joiner

    def lax(tasks, outcomes, lateness_ms, max_open):
        return joiner(tasks, outcomes, lateness_ms, 2 * max_open)

    monkeypatch.setattr(pipeline, "Joiner", lax)
    found = list(rows(settings_of(MAX_OPEN), N_EXPOSURES, N_ROWS))
    told = problems(found, MAX_OPEN, planned_mib(settings_of(MAX_OPEN)))
    assert any(f"{2 * MAX_OPEN:,} open" in one for one in told), told
    assert any("0 given up" in one for one in told), told


GOOD = {"exposures read": 30.0, "open": 20.0, "exposures given up": 10.0, "state, MiB": 5.0, "resident, MiB": 100.0}


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ({}, []),
        ({"open": 21.0, "exposures given up": 9.0}, ["21 open, 9 given up", "1 rows with 20 open"]),
        ({"exposures given up": 9.0}, ["20 open, 9 given up"]),
        ({"resident, MiB": 106.0}, ["resident memory grew from 100 to 106 MiB"]),
        ({"state, MiB": 6.5}, ["the state took 6.5 MiB, the plan says 6.0"]),
    ],
)
def test_what_is_lost_or_grows_is_told(last, told):
    found = problems([GOOD, {**GOOD, **last}], 20, 6.0)
    assert len(found) == len(told)
    for line, piece in zip(found, told, strict=True):
        assert piece in line


@pytest.mark.slow
def test_ingest_and_learner_together_stay_under_the_cap_while_more_exposures_come_than_may_be_open():
    settings = settings_of(0, max_mib=160.0, every_events=20_000)
    found = learned(settings, N_EXPOSURES, N_ROWS)
    assert memory_problems(found, settings) == []
    assert found.held_mib > 0
    last = found.rows[-1]
    assert last["exposures read"] == N_EXPOSURES
    assert last["open"] + last["exposures given up"] <= N_EXPOSURES
    assert last["exposures given up"] > 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ((0, 0.0), []),
        ((-1, 0.0), [f"{MAX_OPEN - 1:,} exposures were open at most"]),
        ((0, 1.0), ["both processes came to hold"]),
    ],
)
def test_a_cap_of_memory_that_is_not_reached_or_not_kept_is_told(more, told):
    settings = settings_of(MAX_OPEN, max_mib=1024.0)
    allowed = settings.memory.max_mib + snapshot_bytes(settings) / MIB
    found = memory_problems(
        Learned(first=(50.0, 50.0), peak=(50.0, 50.0 + allowed + more[1]), most_open=MAX_OPEN + more[0]), settings
    )
    assert len(found) == len(told)
    for line, piece in zip(found, told, strict=True):
        assert piece in line
