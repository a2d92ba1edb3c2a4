"""A snapshot of fewer tasks and fields, taken up by the real streamer and learner over a simulated shop."""

import msgspec
import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from cli._assembly import assemble_behind
from cli._growth import take_up
from contracts.batch import Rows
from contracts.records import Record
from contracts.settings import Settings
from contracts.shaping import settings_of
from features.growth import Growth
from features.schema import FeatureSchema
from learner.loop import OtherSettingsError
from learner.metrics import LearnerMetrics
from learner.models import ple
from learner.snapshot import SnapshotStore
from learner.trainer import Trainer
from streamer.batching import KIND, SLOT
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.feed import Inputs
from streamer.prefetch import ThreadFeed
from streamer.simulator import ShopSimulator, SimulatorSettings
from streamer.sources.memory import MemorySource

TOPIC = ("events", 0)
OLD_FIELDS = [{"source": "item.category"}, {"source": "item.price", "kind": "numeric"}]
NEW_FIELDS = [
    {"source": "item.category"},
    {"source": "item.brand"},
    {"source": "item.tags", "kind": "multi", "slots": 3},
    {"source": "item.price", "kind": "numeric"},
    {"source": "user.country"},
    {"source": "context.position", "kind": "numeric"},
]
VIEW, CLICK = {"name": "content_view"}, {"name": "click", "window": "30s"}
LIKE = {"name": "like", "window": "10s"}
"""Never happens, but its window closes before the others."""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings_with(tasks, fields, model=None, events=None, **more):
    kinds = {task.get("event", task["name"]) for task in tasks}
    return Settings.model_validate(
        {
            "tasks": tasks,
            "fields": fields,
            "features": {"users": 2000, "items": 2000, "pairs": 4096, "values": 4096},
            "embedding": {"max_mib": 2.0},
            "model": {"width": 4, "experts": 2, "expert_layers": (8, 6), "tower": 4, **(model or {})},
            "events": {"ignore": sorted({"click", "purchase"} - kinds), **(events or {})},
            "train": {"precision": "float32"},
            **more,
        }
    )


@pytest.fixture(scope="module")
def events():
    shop = SimulatorSettings(
        seed=5,
        events=1_800,
        rate=20.0,
        n_users=120,
        n_items=100,
        click_rate=0.3,
        purchase_rate=0.5,
        click_delay_ms=2_000,
        purchase_delay_ms=3_000,
        click_window_ms=30_000,
        purchase_window_ms=40_000,
        new_items=0,
    )
    return [
        msgspec.structs.replace(event, item={**event.item, "tags": [event.item.get("category"), "all"]})
        for event in ShopSimulator(shop).events()
    ]


def assembled(settings, events, first=0, store=None, snapshot=None, stop_at=10**9, allow=False):
    """The process over events; a stop is asked for behind so many of them, once a batch is open."""
    records = [Record(*TOPIC, first + index, None, msgspec.json.encode(event)) for index, event in enumerate(events)]
    inputs = Inputs(
        MemorySource({TOPIC: records}, max_records=50),
        EventDecoder(settings, None, lambda: events[-1].ts_ms),
        MemoryDeadLetters(),
    )
    feed, registry = ThreadFeed(), CollectorRegistry()

    def stop():
        ingest = feed._ingest
        return ingest is not None and ingest.n_events >= stop_at and ingest._buffer.n_events > 0

    feed.open(settings, lambda _: _Given(inputs), registry, stop)
    metrics = LearnerMetrics(registry, settings.evaluation.detector)
    return assemble_behind(settings, feed, metrics, store=store, snapshot=snapshot, allow_new_tasks=allow)


class _Given:
    def __init__(self, inputs):
        self._inputs = inputs

    def __enter__(self):
        return self._inputs

    def __exit__(self, *_):
        pass


def learned_half(settings, events, folder):
    """A snapshot within the stream, with exposures and a batch that are open."""
    with SnapshotStore(folder) as store:
        assembled(settings, events, store=store, stop_at=800).run()
        snapshot = store.load()
    assert 500 < snapshot.manifest.n_events < len(events) - 500
    assert snapshot.groups["open_batch"]["integers"].shape[1] > 0
    assert (snapshot.groups["join"]["waiting"] != 0).sum() > 20
    return snapshot


def trainer_of(settings, snapshot=None):
    trainer = Trainer(settings, FeatureSchema.of(settings).layout)
    if snapshot is not None:
        trainer.restore(snapshot.groups, snapshot.states["learner"])
    return trainer


def rows_of(groups):
    examples = groups["examples"]
    return Rows(examples["ids"], examples["history"], examples["dense"], examples["log_q"])


@pytest.mark.parametrize(
    ("model", "more_tasks"),
    [
        ({"name": "mmoe", "field_gates": True, "history": "attention"}, True),
        ({"name": "ple"}, True),
        ({"name": "shared_bottom"}, True),
        ({"name": "single_task"}, False),
    ],
)
def test_what_was_learned_says_the_same_with_more_tasks_and_fields_around_it(model, more_tasks, events, tmp_path):
    delay = "es_dfm" if model["name"] == "ple" else "delay_head"
    old = settings_with([VIEW, {**CLICK, "delay": delay, "wait": "3s"}], OLD_FIELDS, model)
    snapshot = learned_half(old, events, tmp_path)
    added = {"name": "purchase", "delay": "es_dfm" if model["name"] == "mmoe" else "fnc_in_loss"}
    tasks = [VIEW, added, old.shaping()["tasks"][1]] if more_tasks else old.shaping()["tasks"]
    new = settings_with(tasks, NEW_FIELDS, model)
    grown = take_up(snapshot, new, trainer_of(new))
    growth = Growth(FeatureSchema.of(old), FeatureSchema.of(new))
    before, now = trainer_of(old, snapshot), trainer_of(new, grown)

    expected = before.logits(rows_of(snapshot.groups))
    assert np.ptp(expected[:, 1]) > 0.1, "the old model should have learned something"
    found = now.logits(rows_of(grown.groups))
    np.testing.assert_allclose(found[:, growth.tasks], expected, rtol=0, atol=2e-6)
    assert np.isfinite(found).all()

    for name in ("exp_avg", "exp_avg_sq"):
        moments, spread = snapshot.groups["optimizer"][name], grown.groups["optimizer"][name]
        assert len(spread) == sum(one.numel() for one in now.network.parameters())
        assert np.array_equal(np.sort(spread[spread != 0]), np.sort(moments[moments != 0]))
    n_old, n_new = (len(FeatureSchema.of(one).layout.fields) for one in (old, new))
    for name in ("weights", "accumulators"):
        assert np.array_equal(grown.groups["table"][name][n_new:], snapshot.groups["table"][name][n_old:])
    wide = grown.groups["wide"]["weights"]
    kept = [*growth.tasks, -1] if model["name"] != "single_task" else growth.tasks
    assert np.array_equal(wide[:, kept], snapshot.groups["wide"]["weights"])
    assert wide.any()
    for task in ("content_view", "click"):
        assert now.quality.report()[task] == before.quality.report()[task]
    if more_tasks:
        assert now.quality.report()["purchase"]["examples"] == 0
        assert now.n_learned[growth.tasks].tolist() == before.n_learned.tolist()
        assert now.n_learned[1] == 0


def test_a_model_that_does_not_tell_what_its_weights_belong_to_is_named(events, tmp_path, monkeypatch):
    old, new = (settings_with([VIEW, CLICK], fields, {"name": "ple"}) for fields in (OLD_FIELDS, NEW_FIELDS))
    snapshot = learned_half(old, events, tmp_path)
    monkeypatch.delattr(ple, "axes")
    assert "the model `ple` does not say what its weights belong to" in refusal(snapshot, new)


@pytest.mark.parametrize("balancing", ["fixed", "dwa", "famo", "gradnorm", "uncertainty"])
def test_every_balancing_goes_on_with_one_task_more(balancing, events, tmp_path):
    train = {"train": {"precision": "float32", "balancing": balancing}}
    old, new = (settings_with([VIEW, CLICK, *more], OLD_FIELDS, **train) for more in ([], [{"name": "purchase"}]))
    snapshot = learned_half(old, events, tmp_path)
    start = snapshot.manifest.resume_offsets[TOPIC]
    made = assembled(new, events[start:], start, snapshot=snapshot, allow=True)
    for name, array in snapshot.groups["balancing"].items():
        kept = made.trainer._balancer.state()[name]
        assert np.array_equal(kept if kept.shape == array.shape else kept[..., :2], array, equal_nan=True)
    made.run()
    assert made.trainer.n_learned[2] > 0
    assert sum(made.trainer.n_skipped.values()) == 0


def walked(slot, after):
    while slot >= 0:
        yield int(slot)
        slot = after[slot]


@pytest.mark.parametrize("max_open", [2_000, 60])
@pytest.mark.parametrize(
    "purchase",
    [
        {"window": "10s"},
        {"window": "30s"},
        {"window": "45s", "delay": "wait"},
        {"window": "45s", "delay": "delay_head", "wait": "30s"},
        {"window": "20s", "parent": "click"},
    ],
)
def test_an_open_exposure_keeps_its_old_labels_and_gets_none_of_the_new_task(purchase, max_open, events, tmp_path):
    few = {"max_open": max_open}
    old = settings_with([VIEW, CLICK, LIKE], OLD_FIELDS, events=few)
    new = settings_with([{"name": "purchase", **purchase}, VIEW, CLICK, LIKE], NEW_FIELDS, events=few)
    snapshot = learned_half(old, events, tmp_path)
    start = snapshot.manifest.resume_offsets[TOPIC]
    made = assembled(new, events[start:], start, snapshot=snapshot, allow=True)
    join = made.feed._ingest._joiner.state
    longest = list(walked(join.head[-1, 0], join.after[-1]))
    assert sorted(longest) == np.flatnonzero(join.waiting).tolist(), "what is evicted is looked for in there"
    assert (np.diff(join.opened_ms[longest]) >= 0).all()
    made.run()
    made.close_open_windows()
    report = made.trainer.quality.report()
    assert made.feed._ingest._joiner.n_open == 0
    if max_open < 100:
        assert made.feed._ingest._joiner.n_evicted > 0
        return

    throughout = assembled(old, events)
    throughout.run()
    throughout.close_open_windows()
    expected = throughout.trainer.quality.report()["click"]
    assert (report["click"]["examples"], report["click"]["positives"]) == (
        expected["examples"],
        expected["positives"],
    )
    integers = snapshot.groups["open_batch"]["integers"]
    n_in_open_batch = int(((integers[KIND] == 0) & (integers[SLOT] >= 0)).sum())
    views = [event for event in events[:start] if event.type == "content_view"]
    views = views[len(views) - n_in_open_batch :] + [event for event in events[start:] if event.type == "content_view"]
    assert report["purchase"]["examples"] == len(views)
    opened = {(event.request_id, event.item_id): event.ts_ms for event in views}
    window_ms = new.tasks[0].window_ms
    bought = {
        key
        for event in events[start:]
        if event.type == "purchase"
        and (key := (event.request_id, event.item_id)) in opened
        and event.ts_ms - opened[key] <= window_ms
    }
    assert report["purchase"]["positives"] == len(bought) > 20
    assert made.trainer.n_learned[0] > 0


def test_the_profiles_of_before_are_read_by_their_names(events, tmp_path):
    old, new = settings_with([VIEW, CLICK], OLD_FIELDS), settings_with([VIEW, CLICK], NEW_FIELDS)
    snapshot = learned_half(old, events, tmp_path)
    start = snapshot.manifest.resume_offsets[TOPIC]
    before = assembled(old, events[start:], start, snapshot=snapshot).feed._ingest
    now = assembled(new, events[start:], start, snapshot=snapshot, allow=True).feed._ingest
    growth = Growth(before.schema, now.schema)
    assert growth.dense.tolist() != list(range(len(growth.dense))), "the old columns should have moved"
    some = np.flatnonzero(before.profiles.items.ids)[:20]
    items = before.profiles.items.ids[some]
    user = int(before.profiles.users.ids[0])

    def encoded(ingest):
        schema = ingest.schema
        nothing = [
            part
            for one in (schema.user, schema.context)
            for part in (np.zeros(one.n_ids, np.int64), np.full(len(one.numeric), np.nan, np.float32))
        ]
        of_items = np.zeros((20, schema.item.n_ids), np.int64), np.full((20, len(schema.item.numeric)), np.nan)
        return ingest._encoder.encode_candidates(
            user, items, events[start].ts_ms, *nothing, of_items[0], of_items[1].astype(np.float32)
        )[0]

    expected, found = encoded(before), encoded(now)
    assert np.array_equal(found.ids[:, growth.ids], expected.ids)
    assert np.array_equal(found.dense[:, growth.dense], expected.dense)
    assert np.array_equal(found.history, expected.history)
    assert np.array_equal(np.delete(found.ids, growth.ids, 1)[0], np.delete(now.schema.missing, growth.ids))


def refusal(snapshot, settings):
    with pytest.raises(OtherSettingsError) as refused:
        assembled(settings, [], snapshot=snapshot, allow=True)
    return str(refused.value)


def test_what_is_removed_changed_or_has_no_place_is_refused_by_name(events, tmp_path):
    old = settings_with([VIEW, CLICK], [*OLD_FIELDS, {"source": "item.brand"}])
    snapshot = learned_half(old, events, tmp_path)
    assert settings_of(snapshot.manifest.settings).shaping() == old.shaping()
    bought = {"name": "purchase"}
    told = refusal(snapshot, settings_with([VIEW, bought], OLD_FIELDS))
    assert "tasks.click is gone; tasks.purchase is new; fields.item.brand is gone" in told
    told = refusal(snapshot, settings_with([VIEW, {**CLICK, "window": "1m"}, bought], [*OLD_FIELDS, *NEW_FIELDS[1:2]]))
    assert "tasks.click.window: snapshot 30000ms, settings 60000ms" in told
    in_front = [{"source": "item.shop"}, *OLD_FIELDS, {"source": "item.brand"}]
    told = refusal(snapshot, settings_with([VIEW, CLICK], in_front))
    assert "fields.item.shop is new" in told
    assert "item.brand" in told.split(":", 1)[1]
    assert "put new fields behind the old" in told


def test_a_model_whose_tasks_share_no_embeddings_takes_up_no_task(events, tmp_path):
    old, new = (
        settings_with([VIEW, CLICK, *more], OLD_FIELDS, {"name": "single_task"})
        for more in ([], [{"name": "purchase"}])
    )
    told = refusal(learned_half(old, events, tmp_path), new)
    assert "tasks.purchase is new" in told
    assert "floats of its own in every embedding row" in told
