"""From batches to snapshots: models, losses, embedding table, trainer, evaluation."""
