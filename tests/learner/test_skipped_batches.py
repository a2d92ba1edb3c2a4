"""A batch with a number that is not finite leaves no trace but its count and a file to look at."""

import copy
import logging
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from prometheus_client import CollectorRegistry

from contracts.batch import Barrier
from learner.loop import LearnerLoop
from learner.metrics import LearnerMetrics
from learner.snapshot import SnapshotStore
from learner.trainer import Trainer


def poisoned(batch, reason, layout):
    """The batch with bad rows of its own that are learned at once, so that this is what is not finite."""
    dense, labels = batch.rows.dense.copy(), batch.labels.copy()
    row, other = np.flatnonzero(batch.learn.any(1))[:2].tolist()
    if reason == "score":
        dense[row, 2] = np.nan
    elif reason == "loss":
        labels[row, np.flatnonzero(batch.learn[row])[0]] = np.inf
    else:
        # Whatever the column's weight, one of two negatives is taken for a positive.
        dense[[row, other], 2] = 1e30, -1e30
        labels[[row, other]] = 0.0
    return replace(batch, rows=replace(batch.rows, dense=dense), labels=labels)


def state_of(trainer):
    groups, state = copy.deepcopy(trainer.save())
    # Features that wait in their slots; a skipped batch's are there, and are not read.
    groups.pop("examples")
    state.pop("n_skipped")
    return groups, state


# FAMO divides by the loss, so that its gradient stays finite where the loss is huge.
CASES = [
    (reason, balancing)
    for reason in ("score", "loss", "gradient")
    for balancing in ("fixed", "uncertainty", "famo", "dwa", "gradnorm")
    if (reason, balancing) != ("gradient", "famo")
]


@pytest.mark.parametrize(("reason", "balancing"), CASES)
def test_it_leaves_weights_optimiser_table_quality_and_all_else_as_they_were(
    make_settings, layout_of, make_stream, assert_same, reason, balancing
):
    settings = make_settings(train={"balancing": balancing, "calibration": True})
    layout = layout_of(settings)
    trainer, batches = Trainer(settings, layout), make_stream(settings, 8)
    for batch in batches[:7]:
        trainer.step(batch)
    before = state_of(trainer)
    trainer.step(poisoned(batches[7], reason, layout))
    assert_same(before, state_of(trainer))
    assert trainer.n_skipped == {"score": 0, "loss": 0, "gradient": 0} | {reason: 1}
    assert trainer.skipped.reason == reason
    assert trainer.skipped.suspects == (() if reason == "loss" else (layout.dense[2],))


def test_what_its_exposures_bring_later_is_neither_measured_nor_learned(make_settings, layout_of, make_stream):
    settings = make_settings()
    layout = layout_of(settings)
    batches = make_stream(settings, 12)
    ends = []
    for labels in (0.0, 1.0):  # of the exposures of the skipped batch; whatever they are, the end is the same
        trainer = Trainer(settings, layout)
        for index, batch in enumerate(batches):
            if index == 5:
                batch = poisoned(batch, "score", layout)
            if index == 7:
                batch = replace(batch, matured_labels=np.full_like(batch.matured_labels, labels))
            trainer.step(batch)
        assert trainer.n_skipped["score"] == 1
        ends.append(trainer.save())
    for group, arrays in ends[0][0].items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, ends[1][0][group][name], err_msg=f"{group}.{name}")
    assert ends[0][1] == ends[1][1]


def test_the_next_batch_is_learned_with_finite_weights(make_settings, layout_of, make_stream):
    settings = make_settings()
    layout = layout_of(settings)
    trainer, batches = Trainer(settings, layout), make_stream(settings, 20)
    for index, batch in enumerate(batches):
        trainer.step(poisoned(batch, "gradient", layout) if index % 4 == 3 else batch)
        assert (trainer.skipped is not None) == (index % 4 == 3)
    assert sum(trainer.n_skipped.values()) == 5
    for group in ("dense", "optimizer", "table"):
        for array in trainer.save()[0][group].values():
            assert np.isfinite(array).all()


class Learner:
    """A loop over a store in a folder."""

    def __init__(self, settings, layout, folder):
        self.registry = CollectorRegistry()
        self.trainer = Trainer(settings, layout)
        self.store = SnapshotStore(folder)
        metrics = LearnerMetrics(self.registry, settings.evaluation.detector)
        self.published = []
        self.loop = LearnerLoop(settings, self.trainer, metrics, self.store, self.published.append, lambda: 0)

    def value(self, name, **labels):
        return self.registry.get_sample_value(name, labels)


def barrier(batches):
    return Barrier({("events", 0): len(batches)}, {}, {}, batches[-1].watermark_ms, len(batches))


def test_it_is_kept_in_quarantine_the_log_names_file_and_cause_and_prometheus_the_reason(
    make_settings, layout_of, make_stream, tmp_path, caplog, alert_command
):
    settings = make_settings()
    layout = layout_of(settings)
    batches = make_stream(settings, 6)
    batches[4] = poisoned(batches[4], "score", layout)
    learner = Learner(settings, layout, tmp_path / "snapshots")
    learner.loop.run([*batches, barrier(batches)])
    [file] = (tmp_path / "snapshots" / "quarantine").iterdir()
    assert file.name == f"{batches[4].first_event_ms}-000001-score.safetensors"
    [line] = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert str(file) in line
    assert f"its score is not finite (suspect: {layout.dense[2]})" in line
    assert learner.value("anabranch_batches_skipped_total", reason="score") == 1
    assert learner.value("anabranch_batches_skipped_total", reason="loss") == 0

    kept = safetensors.numpy.load_file(file)
    np.testing.assert_array_equal(kept["rows.dense"], batches[4].rows.dense)
    np.testing.assert_array_equal(kept["labels"], batches[4].labels)
    np.testing.assert_array_equal(kept["matured_rows.dense"], batches[2].rows.dense[batches[2].slot >= 0])
    with safetensors.safe_open(file, "numpy") as opened:
        assert opened.metadata() == {"reason": "score", "suspects": layout.dense[2]}
    # The store does not take the folder for a version, nor delete it.
    assert learner.store.versions() == [1]

    python, *look = shlex.split(alert_command("python -c"))
    assert (python, look[-1]) == ("python", "FILE")
    seen = subprocess.run([sys.executable, *look[:-1], str(file)], capture_output=True, text=True, check=True).stdout
    assert f"'rows.dense': {batches[4].rows.dense.shape}" in seen


def test_only_the_newest_are_kept(make_settings, layout_of, make_stream, tmp_path):
    settings = make_settings(snapshot={"quarantine": 2})
    layout = layout_of(settings)
    batches = [poisoned(batch, "loss", layout) for batch in make_stream(settings, 5)]
    Learner(settings, layout, tmp_path).loop.run(batches)
    files = sorted(path.name for path in (tmp_path / "quarantine").iterdir())
    assert [name.split("-")[1] for name in files] == ["000004", "000005"]


def test_a_quarantine_that_cannot_be_written_does_not_end_the_learning(
    make_settings, layout_of, make_stream, tmp_path, caplog
):
    settings = make_settings()
    layout = layout_of(settings)
    batches = make_stream(settings, 6)
    batches[1] = poisoned(batches[1], "loss", layout)
    (tmp_path / "quarantine").write_text("a file where the folder should be")
    learner = Learner(settings, layout, tmp_path)
    with caplog.at_level(logging.WARNING):
        learner.loop.run(batches)
    assert "cannot be kept" in caplog.text
    assert learner.trainer.n_skipped["loss"] == 1
    assert learner.trainer.n_learned.sum() > 0
