"""Hot reload: the newest whole snapshot of these settings serves, anything else is told and passed over."""

import logging

import pytest
from prometheus_client import CollectorRegistry

from learner.snapshot import SnapshotStore
from serving.metrics import ServingMetrics
from serving.reload import Reloader


class Watch:
    """A reloader with its metrics, looked at by hand."""

    def __init__(self, settings, folder, now_ms):
        self.registry = CollectorRegistry()
        self.reloader = Reloader(settings, SnapshotStore(folder), ServingMetrics(self.registry), lambda: now_ms)

    @property
    def version(self):
        scorer = self.reloader.scorer
        return scorer.manifest.version if scorer else None

    @property
    def failures(self):
        return self.registry.get_sample_value("anabranch_reload_failures_total")


@pytest.fixture
def watch(settings, folder, now_ms):
    return Watch(settings, folder, now_ms)


def point_to(folder, version):
    """Roll back, as the command does."""
    with SnapshotStore(folder, keep=5) as store:
        store.rollback(version)


def publish_like(folder, version, change=None, **meta):
    """Publish a version's content again, changed."""
    with SnapshotStore(folder, keep=9) as store:
        old = store.load(version)
        if change is not None:
            change(old.groups)
        manifest = old.manifest
        same = {
            "created_ms": manifest.created_ms,
            "event_time_ms": manifest.event_time_ms,
            "n_events": manifest.n_events,
            "offsets": manifest.resume_offsets,
            "settings_fingerprint": manifest.settings_fingerprint,
            "tasks": manifest.tasks,
            "layout": manifest.layout,
        }
        return store.publish(old.groups, old.states, **{**same, **meta}).version


def damage(folder, version):
    file = folder / f"v{version:08d}" / "dense.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_an_empty_or_missing_store_serves_nothing_and_is_no_failure(settings, tmp_path, now_ms) -> None:
    watch = Watch(settings, tmp_path / "missing", now_ms)
    assert watch.reloader.refresh() is False
    assert (watch.version, watch.failures) == (None, 0)


def test_the_newest_is_loaded_once(watch, now_ms) -> None:
    assert watch.reloader.refresh() is True
    scorer = watch.reloader.scorer
    assert watch.version == 3
    assert watch.reloader.refresh() is False
    assert watch.reloader.scorer is scorer
    value = watch.registry.get_sample_value
    assert value("anabranch_model_version_info", {"version": "3"}) == 1
    assert value("anabranch_event_to_score_seconds_count") == 1
    assert value("anabranch_event_to_score_seconds_sum") == 10


def test_a_newer_one_takes_its_place_and_its_label(watch, folder) -> None:
    watch.reloader.refresh()
    version = publish_like(folder, 3)
    assert watch.reloader.refresh() is True
    assert watch.version == version == 4
    value = watch.registry.get_sample_value
    assert value("anabranch_model_version_info", {"version": "4"}) == 1
    assert value("anabranch_model_version_info", {"version": "3"}) is None


def test_a_roll_back_is_followed(watch, folder) -> None:
    watch.reloader.refresh()
    point_to(folder, 2)
    assert watch.reloader.refresh() is True
    assert watch.version == 2
    assert publish_like(folder, 2) == 4
    assert watch.reloader.refresh() is True
    assert watch.version == 4


def test_a_damaged_newest_leaves_the_old_one_serving_and_is_counted_once(watch, folder, caplog) -> None:
    watch.reloader.refresh()
    scorer = watch.reloader.scorer
    damage(folder, publish_like(folder, 3))
    with caplog.at_level(logging.ERROR, "anabranch.serving"):
        for _ in range(3):
            assert watch.reloader.refresh() is False
    assert watch.reloader.scorer is scorer
    assert watch.failures == 1
    assert "Snapshot v00000004 is not served: " in caplog.text
    assert "dense.safetensors" in caplog.text
    publish_like(folder, 3)
    assert watch.reloader.refresh() is True
    assert watch.version == 5


def test_at_the_start_a_damaged_newest_gives_way_to_the_one_before_and_is_counted(watch, folder) -> None:
    damage(folder, 3)
    for _ in range(3):
        watch.reloader.refresh()
    assert (watch.version, watch.failures) == (2, 1)


def test_a_store_of_damaged_snapshots_only_serves_nothing_and_is_counted(watch, folder) -> None:
    for version in (1, 2, 3):
        damage(folder, version)
    for _ in range(3):
        assert watch.reloader.refresh() is False
    assert (watch.version, watch.failures) == (None, 1)


def test_a_snapshot_of_other_settings_is_refused_with_both_names(settings, folder, now_ms, caplog) -> None:
    other = settings.model_copy(update={"model": settings.model.model_copy(update={"width": 9})})
    watch = Watch(other, folder, now_ms)
    with caplog.at_level(logging.ERROR, "anabranch.serving"):
        for _ in range(2):
            assert watch.reloader.refresh() is False
    assert (watch.version, watch.failures) == (None, 1)
    for part in (settings.fingerprint(), other.fingerprint(), "the learner's settings file"):
        assert part in caplog.text
    assert "Traceback" not in caplog.text


def test_settings_that_shape_nothing_may_differ(settings, folder, now_ms) -> None:
    watch = Watch(
        settings.model_copy(update={"train": settings.train.model_copy(update={"clip_norm": 3})}), folder, now_ms
    )
    assert watch.reloader.refresh() is True


def test_columns_of_another_version_of_the_library_are_refused(watch, folder, caplog) -> None:
    watch.reloader.refresh()
    layout = SnapshotStore(folder).manifest(3).layout
    publish_like(folder, 3, layout={**layout, "dense": [*layout["dense"][1:], layout["dense"][0]]})
    with caplog.at_level(logging.ERROR, "anabranch.serving"):
        assert watch.reloader.refresh() is False
    assert (watch.version, watch.failures) == (3, 1)
    assert "Run learner and worker with the same version" in caplog.text


def test_whatever_else_a_snapshot_lacks_the_old_one_goes_on_serving(watch, folder, caplog) -> None:
    watch.reloader.refresh()
    publish_like(folder, 3, lambda groups: groups["dense"].pop("wide.weight"))
    with caplog.at_level(logging.ERROR, "anabranch.serving"):
        for _ in range(3):
            assert watch.reloader.refresh() is False
    assert (watch.version, watch.failures) == (3, 1)
    assert "Snapshot v00000004 is not served" in caplog.text
    assert "Traceback" in caplog.text


def test_the_thread_follows_the_store_until_it_is_stopped(watch, folder, wait_until) -> None:
    watch.reloader.start()
    try:
        wait_until(lambda: watch.version == 3)
        publish_like(folder, 3)
        wait_until(lambda: watch.version == 4)
    finally:
        watch.reloader.stop()
    publish_like(folder, 3)
    assert watch.version == 4
