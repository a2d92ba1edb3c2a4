"""How many examples a second one step learns: forward, backward, optimiser, embedding, prequential quality.

Then what the signals and the options of the model cost: the default beside ids without behaviour features, field gates,
attention over the histories, in turn; and the default's rate as a share of the rates with less to see, by pair.

python -m benchmarks.bench_step
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.figures import Figure, in_turn, rates, shares, show
from benchmarks.workloads import random_batches, ten_field_settings
from contracts.batch import Batch, Layout, Rows
from contracts.settings import Settings
from features.schema import FeatureSchema
from learner.trainer import Trainer, use_threads

N_BATCHES = 40
COMPARED_ROWS = 1024
_ID_FIELDS, _TWO_IDS = "10 id fields, no behaviour", "user and item id alone"
_DEFAULT = "all three signals (default)"
TITLE = "Training step: 3 tasks, 10 id fields + history, width 16"


def _train(trainer: Trainer, batches: list[Batch]) -> int:
    for batch in batches:
        trainer.step(batch)
    return sum(len(batch.rows) for batch in batches)


def rate(trainer: Trainer, batches: list[Batch]) -> float:
    """Examples a second of one pass over the batches."""
    started = time.perf_counter()
    return _train(trainer, batches) / (time.perf_counter() - started)


def _of_ids(layout: Layout, n_fields: int) -> Layout:
    """The first id fields, no histories, and of the dense columns one: torch warns of a layer without inputs."""
    return replace(
        layout,
        fields=layout.fields[:n_fields],
        slots=layout.slots[:n_fields],
        dense=layout.dense[:1],
        event_types=(),
        item_fields=min(layout.item_fields, n_fields - 1),
        user_fields=max(min(layout.user_fields, n_fields - 1 - layout.item_fields), 0),
        user_dense=0,
    )


def _only(layout: Layout, rows: Rows) -> Rows:
    """What this smaller layout has of the rows."""
    return Rows(
        rows.ids[:, : layout.n_ids].copy(),
        rows.history[:, : len(layout.event_types)].copy(),
        rows.dense[:, : len(layout.dense)].copy(),
        rows.log_q,
    )


def _ways() -> dict[str, Callable[[], float]]:
    """The default model, with less to see and with more to do, on the same batches."""
    settings = ten_field_settings()
    use_threads(settings)
    layout = FeatureSchema.of(settings).layout
    batches = random_batches(settings, N_BATCHES, COMPARED_ROWS)
    ways: dict[str, tuple[Settings, Layout]] = {
        _TWO_IDS: (settings, _of_ids(layout, 2)),
        _ID_FIELDS: (settings, _of_ids(layout, len(layout.fields))),
        _DEFAULT: (settings, layout),
        "with model.field_gates": (ten_field_settings(model={"field_gates": True}), layout),
        'with model.history = "attention"': (ten_field_settings(model={"history": "attention"}), layout),
    }
    return {
        name: partial(rate, Trainer(of, seen), [replace(batch, rows=_only(seen, batch.rows)) for batch in batches])
        for name, (of, seen) in ways.items()
    }


def figures() -> list[Figure]:
    """Each architecture at three sizes of batch; then the ways, in turn."""
    made = []
    for model in ("mmoe", "ple", "shared_bottom", "single_task"):
        for n_rows in (64, 1024, 4096):
            settings = ten_field_settings(model={"name": model})
            use_threads(settings)
            batches = random_batches(settings, N_BATCHES, n_rows)
            trainer = Trainer(settings, FeatureSchema.of(settings).layout)
            values = rates(partial(_train, trainer, batches))
            made.append(Figure(f"{model}, batches of {n_rows}", values, "examples/s"))
    found = in_turn(_ways())
    made += [Figure(f"mmoe, {way}, batches of {COMPARED_ROWS}", found[way], "examples/s") for way in found]
    return made + shares(found, _DEFAULT, {f"{_DEFAULT}, of {way}, by pair": way for way in (_ID_FIELDS, _TWO_IDS)})


if __name__ == "__main__":
    show({TITLE: figures()})
