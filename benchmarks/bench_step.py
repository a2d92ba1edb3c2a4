"""How many examples a second one step learns: forward, backward, optimiser, embedding, prequential quality.

python -m benchmarks.bench_step
"""

from functools import partial

from benchmarks.figures import Figure, rates, show
from benchmarks.workloads import random_batches, ten_field_settings
from contracts.batch import Batch
from features.schema import FeatureSchema
from learner.trainer import Trainer, use_threads

_BATCHES = 40
TITLE = "Training step: 3 tasks, 10 id fields + history, width 16"


def _train(trainer: Trainer, batches: list[Batch]) -> int:
    for batch in batches:
        trainer.step(batch)
    return sum(len(batch.rows) for batch in batches)


def figures() -> list[Figure]:
    """Each architecture at three sizes of batch."""
    made = []
    for model in ("mmoe", "shared_bottom", "single_task"):
        for n_rows in (64, 1024, 4096):
            settings = ten_field_settings(model={"name": model})
            use_threads(settings)
            batches = random_batches(settings, _BATCHES, n_rows)
            trainer = Trainer(settings, FeatureSchema.of(settings).layout)
            values = rates(partial(_train, trainer, batches))
            made.append(Figure(f"{model}, batches of {n_rows}", values, "examples/s"))
    return made


if __name__ == "__main__":
    show({TITLE: figures()})
