"""Made-up work of a known shape."""

from collections.abc import Iterator

import msgspec
import numpy as np

from contracts.batch import Batch, Rows
from contracts.events import Event
from contracts.settings import Settings, load_settings
from features.schema import FeatureSchema
from streamer.simulator import ShopSimulator, SimulatorSettings


def ten_field_settings(**overrides: object) -> Settings:
    """The default model with ten id fields: user, item and eight categorical attributes."""
    item = [{"source": f"item.a{k}"} for k in range(4)]
    user = [{"source": f"user.b{k}"} for k in range(2)]
    context = [{"source": f"context.c{k}"} for k in range(2)]
    return load_settings(None, {"fields": item + user + context, **overrides})


def shop_settings(**overrides: object) -> Settings:
    """The default model on the simulated shop's attributes: nine id fields, user and item among them, and a price."""
    item, user, context = ("category", "brand"), ("country", "age_group"), ("position", "device", "hour")
    owned = [("item", item), ("user", user), ("context", context)]
    fields = [{"source": f"{owner}.{key}"} for owner, keys in owned for key in keys] + [
        {"source": "item.price", "kind": "numeric"}
    ]
    return load_settings(None, {"fields": fields, **overrides})


def shop_toml() -> str:
    """The same settings as a file's content."""
    return "".join(f'[[fields]]\nsource = "{one.source}"\nkind = "{one.kind}"\n' for one in shop_settings().fields)


def shop_events(n_events: int, seed: int = 0) -> Iterator[Event]:
    """The simulated shop at two thousand events a second, as a busy topic: without the truth, which no topic tells."""
    events = ShopSimulator(SimulatorSettings(seed=seed, events=n_events, rate=2000.0)).events()
    return (msgspec.structs.replace(event, truth=None) for event in events)


def quiet_shop_events(n_events: int, seed: int = 0) -> Iterator[Event]:
    """The shop at twenty events a second: a hundred thousand take 80 minutes, and most outcomes come within them.

    At two thousand a second they would take 50 s: nearly no purchase would have happened yet, and no model's quality
    could be told.
    """
    return ShopSimulator(SimulatorSettings(seed=seed, events=n_events, rate=20.0)).events()


def quiet_shop_settings() -> Settings:
    """Batches that fill up in spite of the quiet: learned from a log, nobody waits for them."""
    return shop_settings(batch={"span": "1m"})


def random_batches(settings: Settings, n_batches: int, n_rows: int, n_ids: int = 100_000, seed: int = 0) -> list[Batch]:
    """Batches whose every row is known at once for every task: forward, backward and update of all rows."""
    layout = FeatureSchema.of(settings).layout
    generator = np.random.default_rng(seed)
    n_tasks, n_types = len(layout.tasks), len(layout.event_types)
    weights = generator.normal(size=(len(layout.dense), n_tasks)) * 0.3
    batches = []
    for index in range(n_batches):
        ids = generator.zipf(1.2, (n_rows, layout.n_ids)) % n_ids + 1
        ids += np.arange(layout.n_ids) * n_ids
        history = generator.zipf(1.2, (n_rows, n_types, layout.history_length)) % n_ids + 1 + n_ids
        history[generator.random(history.shape) < 0.5] = 0
        dense = generator.normal(size=(n_rows, len(layout.dense))).astype(np.float32)
        labels = (generator.random((n_rows, n_tasks)) < 1 / (1 + np.exp(2 - dense @ weights))).astype(np.float32)
        batches.append(
            Batch(
                rows=Rows(ids.astype(np.int64), history.astype(np.int64), dense, np.zeros(n_rows, np.float32)),
                slot=np.full(n_rows, -1, np.int64),
                sampled=np.zeros(n_rows, np.bool_),
                time_ms=np.full(n_rows, index * 1000, np.int64),
                list_id=np.zeros(n_rows, np.int64),
                labels=labels,
                known=np.ones((n_rows, n_tasks), np.bool_),
                learn=np.ones((n_rows, n_tasks), np.bool_),
                truth=None,
                matured_slot=np.zeros(0, np.int64),
                matured_labels=np.zeros((0, n_tasks), np.float32),
                matured_known=np.zeros((0, n_tasks), np.bool_),
                matured_learn=np.zeros((0, n_tasks), np.bool_),
                matured_late=np.zeros((0, n_tasks), np.bool_),
                ranking=None,
                new_item_events=np.zeros(n_tasks, np.int64),
                n_events=n_rows,
                watermark_ms=index * 1000,
                first_event_ms=index * 1000,
            )
        )
    return batches
