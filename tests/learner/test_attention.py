"""History pooled by attention to the item that is scored, against torch's own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from contracts.settings import EmbeddingSettings
from learner.embedding import NO_ROW, EmbeddingTable
from learner.trainer import Trainer

WIDTH, HEAD, N_FIELDS, N_TYPES, LENGTH = 6, 3, 2, 2, 4
LEARNING_RATE, INITIAL = 0.07, 0.2


@pytest.fixture
def table():
    """With rows far from zero, as after some training."""
    settings = EmbeddingSettings(max_mib=1.0, learning_rate=LEARNING_RATE, initial_accumulator=INITIAL)
    made = EmbeddingTable(settings, WIDTH, (1,) * N_FIELDS, N_TYPES, 0, HEAD)
    made._weights[:40] = np.random.default_rng(0).normal(size=(40, WIDTH))
    return made


@pytest.fixture
def examples():
    rng = np.random.default_rng(1)
    ids, history = rng.integers(0, 40, (30, N_FIELDS)), rng.integers(0, 40, (30, N_TYPES, LENGTH))
    history[rng.random(history.shape) < 0.4] = NO_ROW
    history[0], history[1, 0] = NO_ROW, NO_ROW
    history[2, 0] = ids[2, 1]  # the item itself is in the history
    return ids, history


def pooled(weights: torch.Tensor, ids: np.ndarray, history: np.ndarray) -> torch.Tensor:
    """As one would write it in torch."""
    there = torch.from_numpy(history >= 0)  # [N, Y, H]
    keys = weights[np.maximum(history, 0)].unflatten(-1, (-1, HEAD))  # [N, Y, H, heads, head]
    query = weights[ids[:, 1]].unflatten(-1, (-1, HEAD))  # [N, heads, head]
    scores = torch.einsum("nyhad,nad->nyha", keys, query) / HEAD**0.5
    shares = scores.masked_fill(~there[..., None], -1e30).softmax(2) * there[..., None]
    return torch.cat([weights[ids], torch.einsum("nyha,nyhad->nyad", shares, keys).flatten(2)], 1)


def test_it_is_scaled_dot_product_attention_and_no_history_is_zeros(table, examples) -> None:
    found = table.embed(*examples)
    torch.testing.assert_close(found, pooled(torch.from_numpy(table._weights), *examples))
    assert not found[0, N_FIELDS:].any()


def test_items_and_histories_learn_by_its_gradient(table, examples) -> None:
    ids, history = examples
    weights = torch.from_numpy(table._weights[:40].copy()).requires_grad_()
    gradient = torch.randn(30, N_FIELDS + N_TYPES, WIDTH, generator=torch.Generator().manual_seed(2))
    (expected,) = torch.autograd.grad((pooled(weights, ids, history) * gradient).sum(), weights)
    before = table._weights[:40].copy()
    table.update(ids, history, gradient, 1.0)
    step = expected.numpy()
    step = LEARNING_RATE * step / np.sqrt(INITIAL + (step**2).mean(1, keepdims=True))
    np.testing.assert_allclose(before - table._weights[:40], step, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("model", ["mmoe", "single_task"])
def test_what_is_like_the_candidate_counts_for_more(make_settings, layout_of, make_batch, model) -> None:
    """A click follows where the item is of a kind that stands in the history: the mean alone cannot tell of which."""
    ne = {}
    for history in ("mean", "attention"):
        settings = make_settings(
            tasks=[{"name": "click"}],
            model={"name": model, "history": history, "width": 8, "expert_layers": (32, 16), "tower": 16},
            embedding={"learning_rate": 0.1, "admit_after": 1},
            features={"history_length": 6},
        )
        layout = layout_of(settings)
        trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
        for index in range(400):
            batch = make_batch(layout, 128, rng, index)
            batch.rows.dense[:] = 0
            ids, past = batch.rows.ids, batch.rows.history
            ids[:, 0], ids[:, 2:] = 1, 2  # neither user nor category tells anything
            ids[:, 1] = rng.integers(1, 13, len(ids))
            past[:] = rng.integers(1, 13, past.shape)
            alike = (past[:, 0] == ids[:, 1:2]).any(1)
            labels = rng.random(len(ids)) < np.where(alike, 0.8, 0.1)
            trainer.step(replace(batch, labels=labels[:, None].astype(np.float32)))
        ne[history] = trainer.quality.report()["click"]["last_half"]["ne"]
    assert ne["attention"] < ne["mean"] - 0.005, ne
