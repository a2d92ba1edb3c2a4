"""Millions of ids that come once: the log has them, the cap holds, and both runs are measured by the same views."""

import pytest

from benchmarks.pipeline import write_log
from benchmarks.quality.memory import log, run, settings_of, tables
from contracts.memory import MIB, plan

N_IDS, CAP_MIB = 20_000, 4.0


def mib_of(settings, *sections):
    return sum(one.n_bytes for one in plan(settings) if one.part.setting.startswith(sections)) / MIB


def test_embeddings_and_profiles_share_the_cap_and_without_one_everything_fits() -> None:
    assert 0.9 * CAP_MIB < mib_of(settings_of(N_IDS, CAP_MIB), "embedding", "features") <= CAP_MIB
    everything = settings_of(N_IDS, 0)
    assert min(everything.features.users, everything.features.items) >= N_IDS
    assert everything.embedding.max_mib > N_IDS * 150 / MIB


def test_the_log_has_so_many_ids_that_come_once() -> None:
    strangers = [event for event in log(N_IDS, 0) if event.event_id.startswith("once-")]
    assert len({one.user_id for one in strangers} | {f"item {one.item_id}" for one in strangers}) == N_IDS


@pytest.mark.slow
def test_a_run_under_the_cap_keeps_fewer_rows_and_is_measured_by_the_same_views(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    write_log(path, log(N_IDS, 0))
    capped, whole = (run(path, N_IDS, cap_mib) for cap_mib in (CAP_MIB, 0.0))
    assert whole.rows > N_IDS > 1.5 * capped.rows
    assert len(capped.resident_mib) == len(whole.resident_mib) == 10
    for what in ("all_views", "frequent"):
        (learned, truth), (other, same_truth) = getattr(capped, what), getattr(whole, what)
        assert truth == same_truth < min(learned, other)
    memory, quality = tables({"capped": capped, "whole": whole}, N_IDS)
    assert (memory.row_count, quality.row_count) == (10, 5)
