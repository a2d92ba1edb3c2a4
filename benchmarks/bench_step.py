"""How many examples a second one step learns: forward, backward, optimiser, embedding, prequential quality.

python -m benchmarks.bench_step
"""

from functools import partial

from benchmarks.workloads import add, random_batches, rates, show, table, ten_field_settings
from contracts.batch import Batch
from features.schema import FeatureSchema
from learner.trainer import Trainer, use_threads

_BATCHES = 40


def _train(trainer: Trainer, batches: list[Batch]) -> int:
    for batch in batches:
        trainer.step(batch)
    return sum(len(batch.rows) for batch in batches)


def main() -> None:
    figures = table("Training step: 3 tasks, 10 id fields + history, width 16")
    for model in ("mmoe", "shared_bottom", "single_task"):
        for n_rows in (64, 1024, 4096):
            settings = ten_field_settings(model={"name": model})
            use_threads(settings)
            batches = random_batches(settings, _BATCHES, n_rows)
            trainer = Trainer(settings, FeatureSchema.of(settings).layout)
            add(figures, f"{model}, batches of {n_rows}", rates(partial(_train, trainer, batches)), "examples/s")
    show(figures)


if __name__ == "__main__":
    main()
