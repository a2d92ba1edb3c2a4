"""The loop: barriers become snapshots, a failing disk does not stop learning, and what Prometheus hears of it."""

import copy
import itertools
import logging
import math
import threading
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from contracts.batch import Barrier
from learner.disk import Disk
from learner.loop import INGEST, LEARNER, LearnerLoop, OtherSettingsError, check_snapshot
from learner.metrics import LearnerMetrics
from learner.snapshot import SnapshotStore
from learner.trainer import Trainer

NOW_MS = 1_800_000_000_000
PATIENCE_SECONDS = 10


class FailingDisk(Disk):
    """A disk that is full while ``full`` says so."""

    full = False

    def __init__(self):
        self.published = []

    def rename(self, old, new):
        super().rename(old, new)
        self.published.append(f"{new.parent.name}/{new.name}")

    def write(self, path, parts, **how):
        if self.full:
            raise OSError(28, "No space left on device")
        super().write(path, parts, **how)


class Loop:
    """A loop with all that it is made of."""

    def __init__(self, settings, layout, store=None, clock_ms=lambda: NOW_MS):
        self.settings, self.layout = settings, layout
        self.registry = CollectorRegistry()
        self.trainer = Trainer(settings, layout)
        self.metrics = LearnerMetrics(self.registry, settings.evaluation.detector)
        self.published = []
        self.loop = LearnerLoop(settings, self.trainer, self.metrics, store, self.published.append, clock_ms)

    def value(self, name, **labels):
        return self.registry.get_sample_value(name, labels)


def barrier(number, event_time_ms=5000, **more):
    return Barrier(
        offsets={("events", 0): number, ("events", 1): 7},
        groups={"profiles": {"rows": np.arange(number)}},
        state={"n": number},
        event_time_ms=event_time_ms,
        n_events=number,
        **more,
    )


def written(number):
    """A barrier, and the wait until its snapshot is written, or is not."""
    released = threading.Event()
    yield barrier(number, release=released.set)
    assert released.wait(PATIENCE_SECONDS)


@pytest.fixture
def settings(make_settings):
    return make_settings()


@pytest.fixture
def layout(settings, layout_of):
    return layout_of(settings)


@pytest.fixture
def disk():
    return FailingDisk()


@pytest.fixture
def store(tmp_path, disk):
    with SnapshotStore(tmp_path / "snapshots", keep=3, disk=disk) as made:
        yield made


def test_each_barrier_publishes_both_sides_and_the_offsets(settings, layout, store, make_stream, assert_same) -> None:
    made, batches = Loop(settings, layout, store), make_stream(settings, 6)
    seen = []
    made.loop.run([*batches[:3], barrier(100), *batches[3:], barrier(200)], lambda batch: seen.append(batch.n_events))
    assert store.versions() == [1, 2]
    assert made.published == [barrier(100).offsets, barrier(200).offsets]
    assert len(seen) == 6

    manifest = store.manifest(1)
    assert (manifest.created_ms, manifest.event_time_ms, manifest.n_events) == (NOW_MS, 5000, 100)
    assert manifest.resume_offsets == barrier(100).offsets
    assert manifest.settings_fingerprint == settings.fingerprint()
    assert manifest.tasks == list(layout.tasks)
    assert manifest.layout["fields"] == list(layout.fields)

    at_first = Trainer(settings, layout)
    for batch in batches[:3]:
        at_first.step(batch)
    snapshot = store.load(1)
    assert snapshot.states[INGEST] == {"n": 100}
    assert_same(snapshot.groups.pop("profiles"), {"rows": np.arange(100)})
    resumed = Trainer(settings, layout)
    resumed.restore(snapshot.groups, snapshot.states[LEARNER])
    assert_same(at_first.save(), resumed.save())
    for batch in batches[3:]:
        resumed.step(batch)
    assert_same(made.trainer.save(), resumed.save())


def test_without_a_store_barriers_pass_by(settings, layout, make_stream) -> None:
    made = Loop(settings, layout)
    made.loop.run([*make_stream(settings, 2), barrier(5)])
    assert made.published == []
    assert made.trainer.n_learned.sum() > 0
    assert made.value("anabranch_snapshot_bytes") == 0


def test_a_barrier_before_any_event_publishes_nothing(settings, layout, store) -> None:
    Loop(settings, layout, store).loop.run([barrier(0, event_time_ms=-1)])
    assert store.versions() == []


def test_a_full_disk_is_counted_learning_goes_on_and_the_next_barrier_tries_again(
    settings, layout, store, disk, make_stream, caplog
) -> None:
    made, batches = Loop(settings, layout, store), make_stream(settings, 6)

    def stream():
        yield from batches[:2]
        yield from written(1)
        disk.full = True
        yield from batches[2:4]
        yield from written(2)
        yield from written(3)
        disk.full = False
        yield from batches[4:]
        yield barrier(4)

    with caplog.at_level(logging.ERROR):
        made.loop.run(stream())
    assert made.value("anabranch_snapshot_failures_total") == 2
    assert "Snapshot failed; learning goes on" in caplog.text
    assert made.published == [barrier(1).offsets, barrier(4).offsets]
    assert store.load().manifest.n_events == 4
    straight = Trainer(settings, layout)
    for batch in batches:
        straight.step(batch)
    assert straight.losses == made.trainer.losses


def test_a_run_whose_last_snapshot_failed_ends_with_the_error(settings, layout, store, disk, make_stream) -> None:
    made = Loop(settings, layout, store)

    def stream():
        yield from make_stream(settings, 2)
        yield from written(1)
        disk.full = True
        yield barrier(2)

    with pytest.raises(OSError, match="No space left"):
        made.loop.run(stream())
    assert store.load().manifest.n_events == 1
    assert made.published == [barrier(1).offsets]


class SlowDisk(Disk):
    """A disk that takes its first file only when it may."""

    def __init__(self):
        self.writes, self.may_go_on = threading.Event(), threading.Event()

    def write(self, path, parts, **how):
        self.writes.set()
        assert self.may_go_on.wait(PATIENCE_SECONDS)
        super().write(path, parts, **how)


def test_learning_goes_on_while_a_snapshot_is_written_and_what_is_written_is_the_cut(
    settings, layout, tmp_path, make_stream, assert_same
) -> None:
    disk, batches, learned = SlowDisk(), make_stream(settings, 40), []
    with SnapshotStore(tmp_path / "slow", disk=disk) as store:
        disk.may_go_on.set()
        store.acquire()
        disk.may_go_on.clear()
        made = Loop(settings, layout, store)

        def stream():
            yield from batches[:10]
            yield barrier(1)
            assert disk.writes.wait(PATIENCE_SECONDS)
            yield from batches[10:]
            assert len(learned) == 40
            assert made.published == []
            disk.may_go_on.set()
            yield barrier(2)

        made.loop.run(stream(), lambda batch: learned.append(batch.n_events))
        assert made.published == [barrier(1).offsets, barrier(2).offsets]
        straight = Trainer(settings, layout)
        for batch in batches[:10]:
            straight.step(batch)
        resumed = Trainer(settings, layout)
        first = store.load(1)
        resumed.restore(first.groups, first.states[LEARNER])
        assert_same(straight.save(), resumed.save())
        second = store.load(2)
        resumed = Trainer(settings, layout)
        resumed.restore(second.groups, second.states[LEARNER])
        assert_same(made.trainer.save(), resumed.save())
    assert made.value("anabranch_snapshot_pause_seconds_count") == 2


def test_a_barrier_is_released_also_where_nothing_is_published(settings, layout, store) -> None:
    released = []
    Loop(settings, layout).loop.run([barrier(1, release=lambda: released.append("no store"))])
    none_yet = barrier(0, event_time_ms=-1, release=lambda: released.append("no event"))
    Loop(settings, layout, store).loop.run([none_yet])
    assert released == ["no store", "no event"]


class CrashingDisk(Disk):
    """The process dies at the n-th call."""

    def __init__(self):
        self.n_calls, self.crash_at = 0, -1

    def _call(self):
        self.n_calls += 1
        if self.n_calls - 1 == self.crash_at:
            raise SystemExit

    def write(self, path, parts, **how):
        self._call()
        super().write(path, parts, **how)

    def make_folder(self, path):
        self._call()
        super().make_folder(path)

    def rename(self, old, new):
        self._call()
        super().rename(old, new)

    def remove(self, folder):
        self._call()
        super().remove(folder)


def test_a_writer_that_dies_at_any_step_leaves_a_whole_store_and_ends_the_run(
    settings, layout, tmp_path, make_stream
) -> None:
    batches, found = make_stream(settings, 4), set()
    for crash_at in itertools.count():
        disk = CrashingDisk()
        with SnapshotStore(tmp_path / str(crash_at), keep=1, disk=disk) as store:
            made = Loop(settings, layout, store)
            made.loop.run([*batches[:2], barrier(1)])
            disk.n_calls, disk.crash_at = 0, crash_at
            try:
                made.loop.run([*batches[2:], barrier(2)])
            except SystemExit:
                pass
            else:
                break
        snapshot = SnapshotStore(tmp_path / str(crash_at)).load()
        found.add(snapshot.manifest.n_events)
        assert snapshot.skipped == ()
        Trainer(settings, layout).restore(snapshot.groups, snapshot.states[LEARNER])
        assert (snapshot.manifest.n_events == 2) or made.published == [barrier(1).offsets]
    assert crash_at > 10
    assert found == {1, 2}


def delta(number):
    return barrier(number, 5000 + number, is_delta=True)


def run_with_deltas(settings, layout, store, pieces):
    """A loop over a stream that waits for the disk behind each piece."""
    made = Loop(settings, layout, store)

    def stream():
        for piece in pieces:
            yield piece
            made.loop._writer.wait()

    made.loop.run(stream())
    return made


def test_a_delta_follows_each_of_its_cuts_behind_a_snapshot(settings, layout, store, make_stream) -> None:
    batches = make_stream(settings, 9)
    behind = [piece for n, batch in enumerate(batches[3:8]) for piece in (batch, delta(n))]
    made = run_with_deltas(settings, layout, store, [*batches[:2], delta(50), batches[2], barrier(100), *behind])
    deltas = list(store.deltas(1, 0))
    assert [found.manifest.delta for found in deltas] == [1, 2, 3, 4, 5]
    assert [found.manifest.event_time_ms for found in deltas] == [5000, 5001, 5002, 5003, 5004]
    assert [len(found.groups["profiles"]["rows"]) for found in deltas] == [0, 1, 2, 3, 4]
    first = store.load(1)
    table = Trainer(settings, layout).table
    table.load(first.groups["table"])
    for found in deltas:
        table = table.moved_on(found.groups["table"])
    rows = made.trainer.table.rows(batches[8].rows)
    np.testing.assert_array_equal(table.embed(*table.rows(batches[8].rows)), made.trainer.table.embed(*rows))
    assert made.value("anabranch_delta_seconds_count") == 5
    assert made.value("anabranch_delta_bytes_total") == sum(found.manifest.total_bytes for found in deltas)
    assert made.value("anabranch_delta_rows_total") == sum(len(found.groups["table"]["row"]) for found in deltas) > 0


def test_after_a_failure_there_are_no_deltas_until_the_next_snapshot(
    settings, layout, store, disk, make_stream
) -> None:
    batches = make_stream(settings, 12)

    def followed(batches):
        for batch in batches:
            yield batch
            yield delta(1)

    def pieces():
        yield barrier(1)
        yield from followed(batches[:2])
        disk.full = True
        yield from followed(batches[2:3])
        disk.full = False
        yield from followed(batches[3:6])
        yield barrier(2)
        yield from followed(batches[6:8])
        disk.full = True
        yield barrier(3)
        disk.full = False
        yield from followed(batches[8:10])
        yield barrier(4)

    made = run_with_deltas(settings, layout, store, pieces())
    assert [path for path in disk.published if "/delta-" in path and not path.endswith(".tmp")] == [
        "v00000001/delta-000001",
        "v00000001/delta-000002",
        "v00000002/delta-000001",
        "v00000002/delta-000002",
    ]
    assert [list(store.deltas(version, 0)) for version in store.versions()] == [[], [], []]
    assert made.value("anabranch_snapshot_failures_total") == 2


def test_every_cut_is_released_whatever_becomes_of_it(settings, layout, store, disk, make_stream) -> None:
    batches, released = make_stream(settings, 3), []

    def cuts():
        for number, (is_delta, full) in enumerate(
            [(True, False), (False, True), (False, False), (True, False), (True, True), (True, False)]
        ):
            disk.full = full
            yield barrier(number, is_delta=is_delta, release=partial(released.append, number))

    run_with_deltas(settings, layout, store, itertools.chain(batches, cuts()))
    assert released == list(range(6))


def test_an_error_of_the_stream_ends_the_run(settings, layout) -> None:
    def stream():
        yield barrier(1)
        raise ConnectionError("the broker is gone")

    with pytest.raises(ConnectionError, match="the broker is gone"):
        Loop(settings, layout).loop.run(stream())


def test_a_snapshot_of_these_settings_may_be_resumed(settings, layout, store) -> None:
    Loop(settings, layout, store).loop.run([barrier(1)])
    check_snapshot(store.load(), settings, layout)
    more_often = settings.model_copy(update={"train": settings.train.model_copy(update={"learning_rate": 0.5})})
    check_snapshot(store.load(), more_often, layout)


def test_a_snapshot_of_other_settings_is_refused_by_both_names_and_what_differs(
    settings, layout, store, make_settings, layout_of
) -> None:
    Loop(settings, layout, store).loop.run([barrier(1)])
    other = make_settings(tasks=[{"name": "content_view"}, {"name": "click"}])
    with pytest.raises(OtherSettingsError) as refused:
        check_snapshot(store.load(), other, layout_of(other))
    for part in (
        settings.fingerprint(),
        other.fingerprint(),
        "v00000001",
        "tasks.purchase is gone; tasks.click.window: snapshot 1800000ms, settings 86400000ms",
        "new, empty folder",
    ):
        assert part in str(refused.value)
    assert "--allow-new-tasks" not in str(refused.value)
    wider = make_settings(model={"width": 5})
    with pytest.raises(OtherSettingsError, match=r"model\.width: snapshot 4, settings 5"):
        check_snapshot(store.load(), wider, layout_of(wider))


def test_where_tasks_or_fields_are_only_added_the_refusal_tells_how_to_take_them_up(
    settings, layout, store, make_settings, layout_of
) -> None:
    Loop(settings, layout, store).loop.run([barrier(1)])
    more = make_settings(
        tasks=[*settings.shaping()["tasks"], {"name": "favourite"}],
        fields=[{"source": "item.category"}, {"source": "item.brand"}],
    )
    with pytest.raises(OtherSettingsError) as refused:
        check_snapshot(store.load(), more, layout_of(more))
    assert "tasks.favourite is new; fields.item.brand is new. Take up what is new with `learn --allow" in str(
        refused.value
    )


def test_a_snapshot_whose_columns_another_version_of_the_library_made_is_refused(settings, layout, store) -> None:
    Loop(settings, layout, store).loop.run([barrier(1)])
    newer = replace(layout, dense=(*layout.dense, "a new column"))
    with pytest.raises(OtherSettingsError, match="dense of library version"):
        check_snapshot(store.load(), settings, newer)


def test_prometheus_hears_of_steps_quality_table_and_snapshots(settings, layout, store, make_stream) -> None:
    made, batches = Loop(settings, layout, store), make_stream(settings, 8)
    made.loop.run([*batches, barrier(9, event_time_ms=batches[-1].watermark_ms)])
    report = made.trainer.quality.report()
    assert made.value("anabranch_train_batch_seconds_count") == 8
    for index, task in enumerate(layout.tasks):
        assert made.value("anabranch_train_examples_total", task=task) == made.trainer.n_learned[index] > 0
        assert made.value("anabranch_train_positives_total", task=task) == made.trainer.n_positives[index] > 0
        assert made.value("anabranch_train_loss", task=task) == made.trainer.losses[task]
        for window in ("all", "sliding"):
            assert made.value("anabranch_prequential_ne", task=task, window=window) == report[task]["all"]["ne"]
            assert made.value("anabranch_prequential_auc", task=task, window=window) == report[task]["all"]["auc"]
            calibration = made.value("anabranch_calibration_ratio", task=task, window=window)
            assert calibration == report[task]["all"]["calibration"]
    assert made.value("anabranch_embedding_rows", table="ids") == made.trainer.table.n_rows
    assert made.value("anabranch_embedding_bytes", table="ids") == made.trainer.table.n_bytes
    assert made.value("anabranch_embedding_admission_rejected_total", table="ids") == made.trainer.table.n_rejected > 0
    assert made.value("anabranch_snapshot_seconds_count") == 1
    assert made.value("anabranch_snapshot_bytes") == store.manifest(1).total_bytes
    assert made.value("anabranch_snapshot_last_success_timestamp_seconds") == NOW_MS / 1000


def test_prometheus_hears_of_gradients_and_gates(settings, layout, make_stream, monkeypatch) -> None:
    monkeypatch.setattr("learner.trainer._LOOK_EVERY", 3)
    made, batches = Loop(settings, layout), make_stream(settings, 8)
    made.loop.run([*batches, barrier(9, event_time_ms=batches[-1].watermark_ms)])
    cosines, entropies = made.trainer.cosines, made.trainer.gate_entropies
    assert set(cosines) == set(itertools.combinations(layout.tasks, 2))
    assert any(cosines.values())  # 0 where two tasks' labels are of other rows
    for (one, other), cosine in cosines.items():
        assert -1 <= cosine <= 1
        assert made.value("anabranch_task_grad_cosine", a=one, b=other) == cosine
    assert set(entropies) == set(layout.tasks)
    for task, entropy in entropies.items():
        assert 0 < entropy <= 1 + 1e-6
        assert made.value("anabranch_gate_entropy", task=task) == entropy


def test_every_counter_is_there_before_it_first_counts(settings, layout) -> None:
    made = Loop(settings, layout)
    made.loop.run([])
    for task in layout.tasks:
        assert made.value("anabranch_drift_alarms_total", detector="adwin", task=task) == 0
        assert made.value("anabranch_train_examples_total", task=task) == 0
    assert made.value("anabranch_embedding_evicted_total", table="ids") == 0
    for reason in ("score", "loss", "gradient"):
        assert made.value("anabranch_batches_skipped_total", reason=reason) == 0


def test_what_an_earlier_run_counted_is_not_counted_again(settings, layout, make_stream) -> None:
    first, batches = Loop(settings, layout), make_stream(settings, 8)
    first.loop.run([*batches[:5], barrier(1)])
    second = Loop(settings, layout)
    second.trainer.restore(*copy.deepcopy(first.trainer.save()))
    before = second.trainer.n_learned.copy()
    second.loop.run([*batches[5:], barrier(2)])
    for index, task in enumerate(layout.tasks):
        counted = second.value("anabranch_train_examples_total", task=task)
        assert counted == second.trainer.n_learned[index] - before[index] > 0


def test_a_metric_that_is_not_defined_yet_is_nan_not_zero(settings, layout) -> None:
    made = Loop(settings, layout)
    made.loop.run([barrier(1)])
    assert math.isnan(made.value("anabranch_prequential_ne", task="click", window="all"))


def test_drift_is_counted_and_told(make_settings, layout_of, make_batch, caplog) -> None:
    settings = make_settings(evaluation={"detector": "page_hinkley"})
    layout, rng = layout_of(settings), np.random.default_rng(0)
    made = Loop(settings, layout)

    def stream():
        for index in range(400):
            batch = make_batch(layout, 32, rng, index)
            labels = (rng.random((32, 3)) < [0.3, 0.03 if index < 300 else 0.9, 0.3]).astype(np.float32)
            yield replace(batch, labels=labels)

    with caplog.at_level(logging.WARNING, "anabranch.learner"):
        made.loop.run(stream())
    assert made.value("anabranch_drift_alarms_total", detector="page_hinkley", task="click") > 0
    assert "Drift: the prequential loss of `click` has changed" in caplog.text


def test_the_layout_in_the_manifest_is_the_layout(settings, layout, store) -> None:
    Loop(settings, layout, store).loop.run([barrier(1)])
    found = store.manifest(1).layout
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()} == asdict(layout)
