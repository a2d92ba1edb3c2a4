"""How many examples a second one step learns: forward, backward, optimiser, embedding, prequential quality.

python -m benchmarks.bench_step
"""

from benchmarks.workloads import add, random_batches, rates, show, table, ten_field_settings
from features.schema import FeatureSchema
from learner.trainer import Trainer, use_threads

_BATCHES = 40


def main() -> None:
    figures = table("Training step: 3 tasks, 10 id fields + history, width 16")
    for model in ("mmoe", "shared_bottom", "single_task"):
        for n_rows in (64, 1024, 4096):
            settings = ten_field_settings(model={"name": model})
            use_threads(settings)
            batches = random_batches(settings, _BATCHES, n_rows)
            trainer = Trainer(settings, FeatureSchema.of(settings).layout)

            def run() -> int:
                for batch in batches:
                    trainer.step(batch)
                return _BATCHES * n_rows

            add(figures, f"{model}, batches of {n_rows}", rates(run), "examples/s")
    show(figures)


if __name__ == "__main__":
    main()
