"""Between two snapshots the worker follows the learner's deltas, and scores as if it had loaded all of it at once."""

import logging
import shutil

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from contracts.batch import Barrier
from contracts.manifest import decode_manifest, encode_manifest
from contracts.scoring import ScoreRequest
from features.profiles import save_profiles
from learner.snapshot import SnapshotStore
from serving.metrics import ServingMetrics
from serving.reload import Reloader

CUT, END = 500, 1200


def meta_of(manifest):
    return {
        "created_ms": manifest.created_ms,
        "event_time_ms": manifest.event_time_ms,
        "n_events": manifest.n_events,
        "offsets": manifest.resume_offsets,
        "settings_fingerprint": manifest.settings_fingerprint,
        "tasks": manifest.tasks,
        "layout": manifest.layout,
    }


@pytest.fixture(scope="module")
def chain(settings, events, learned, make_assembly, tmp_path_factory):
    """A store with snapshot 1 and deltas behind it, and one with a whole snapshot of the last delta's cut."""
    folder = tmp_path_factory.mktemp("chain")
    with SnapshotStore(folder / "deltas") as store, SnapshotStore(folder / "whole") as whole:
        assembly = make_assembly(settings, events[CUT:END], CUT, store, SnapshotStore(learned).load(1))
        ingest, last = assembly.feed._ingest, []

        def stream():
            yield ingest.barrier()
            for number, piece in enumerate(ingest.stream()):
                if isinstance(piece, Barrier):
                    last.append(piece)
                else:
                    yield piece
                    if number % 4 == 3 or ingest.n_events == END:
                        yield ingest.delta()

        assembly.loop.run(stream())
        n_deltas = len(list(store.deltas(1, 0)))
        assert n_deltas > 3
        groups, _ = assembly.trainer.save()
        whole.publish({**last[0].groups, **groups}, {}, **meta_of(store.manifest(1)))
    return folder, n_deltas


@pytest.fixture
def folder(chain, tmp_path):
    shutil.copytree(chain[0], tmp_path / "chain")
    return tmp_path / "chain"


class Watch:
    def __init__(self, settings, folder):
        self.registry = CollectorRegistry()
        self.reloader = Reloader(settings, SnapshotStore(folder), ServingMetrics(self.registry), lambda: 0)

    @property
    def standing(self):
        manifest = self.reloader.scorer.manifest
        return manifest.version, manifest.delta

    def value(self, name):
        return self.registry.get_sample_value(name)


def scores(scorer, events):
    """What the scorer says to requests of known and unknown users."""
    items = [*sorted({event.item_id for event in events})[:49], "unknown"]
    users = [event.user_id for event in events[:END:40]] + ["unknown"]
    replies = [scorer.score(ScoreRequest(user_id=user, items=items, ts_ms=events[END].ts_ms), "", 0) for user in users]
    return [[item.probabilities for item in reply.items] for reply in replies]


def test_a_snapshot_and_its_deltas_score_bit_for_bit_as_a_snapshot_of_the_same_cut(
    settings, events, chain, folder
) -> None:
    followed, whole = Watch(settings, folder / "deltas"), Watch(settings, folder / "whole")
    assert followed.reloader.refresh()
    assert whole.reloader.refresh()
    assert followed.standing == (1, chain[1])
    assert whole.standing == (1, 0)
    for path in (folder / "deltas" / "v00000001").glob("delta-*"):
        shutil.rmtree(path)
    before = Watch(settings, folder / "deltas")
    assert before.reloader.refresh()
    found = scores(followed.reloader.scorer, events)
    assert found == scores(whole.reloader.scorer, events)
    assert found != scores(before.reloader.scorer, events)
    for name, array in save_profiles(whole.reloader.scorer._encoder.profiles).items():
        np.testing.assert_array_equal(save_profiles(followed.reloader.scorer._encoder.profiles)[name], array)


def test_behind_a_delta_a_user_who_came_since_the_snapshot_is_known(settings, events, folder) -> None:
    before, after = ({event.user_id for event in some} for some in (events[:CUT], events[:END]))
    newcomer = min(after - before)
    request = ScoreRequest(user_id=newcomer, items=[events[0].item_id], ts_ms=events[END].ts_ms)
    watch = Watch(settings, folder / "deltas")
    watch.reloader._load()
    assert watch.reloader.scorer.score(request, "", 0).fallback == "content"
    assert watch.reloader.refresh()
    assert watch.reloader.scorer.score(request, "", 0).fallback == "personalised"


def test_one_delta_after_the_other_gives_the_same_and_leaves_each_scorer_before_it_as_it_was(
    settings, events, chain, folder
) -> None:
    version = folder / "deltas" / "v00000001"
    (version / "later").mkdir()
    for path in sorted(version.glob("delta-*")):
        path.rename(version / "later" / path.name)
    watch = Watch(settings, folder / "deltas")
    assert watch.reloader.refresh()
    assert not watch.reloader.refresh()
    served = [(watch.reloader.scorer, scores(watch.reloader.scorer, events))]
    for path in sorted((version / "later").iterdir()):
        path.rename(version / path.name)
        assert watch.reloader.refresh()
        served.append((watch.reloader.scorer, scores(watch.reloader.scorer, events)))
    assert [scorer.manifest.delta for scorer, _ in served] == list(range(chain[1] + 1))
    for scorer, found in served:
        assert scores(scorer, events) == found
    at_once = Watch(settings, folder / "whole")
    at_once.reloader.refresh()
    assert served[-1][1] == scores(at_once.reloader.scorer, events)


def flip(version):
    file = version / "delta-000002" / "table.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def tear(version):
    file = version / "delta-000002" / "dense.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lose(version):
    shutil.rmtree(version / "delta-000002")


def lose_a_manifest(version):
    (version / "delta-000002" / "manifest.json").unlink()


def repeat(version):
    shutil.rmtree(version / "delta-000002")
    shutil.copytree(version / "delta-000001", version / "delta-000002")


def forget_the_profiles(version):
    """As a library before deltas held them would have written it."""
    file = version / "delta-000002" / "manifest.json"
    manifest = decode_manifest(file.read_bytes())
    files = {name: entry for name, entry in manifest.files.items() if name != "profiles.safetensors"}
    file.write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))


@pytest.mark.parametrize("damage", [flip, tear, lose, lose_a_manifest, repeat, forget_the_profiles])
def test_behind_a_damaged_delta_the_next_snapshot_is_waited_for(settings, folder, damage, caplog) -> None:
    damage(folder / "deltas" / "v00000001")
    watch = Watch(settings, folder / "deltas")
    with caplog.at_level(logging.ERROR):
        assert watch.reloader.refresh()
        assert not watch.reloader.refresh()
    assert watch.standing == (1, 1)
    assert watch.value("anabranch_reload_failures_total") == 1
    assert "delta-000002" in caplog.text
    assert "No further delta of v00000001" in caplog.text
    with SnapshotStore(folder / "whole") as other, SnapshotStore(folder / "deltas") as store:
        whole, one = other.load(), next(store.deltas(1, 0))
        manifest = store.publish(whole.groups, {}, **meta_of(whole.manifest))
        assert watch.reloader.refresh()
        assert watch.standing == (2, 0)
        store.publish_delta(manifest, one.groups, created_ms=0, event_time_ms=0)
    assert watch.reloader.refresh()
    assert watch.standing == (2, 1)
