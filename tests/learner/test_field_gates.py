"""A learned factor for each embedding field."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from contracts.components import names
from contracts.settings import TrainSettings
from learner.models._base import Network
from learner.regularise import Pull
from learner.trainer import Trainer

GATED = {"field_gates": True}


@pytest.mark.parametrize("name", names("learner.models"))
def test_at_first_gates_change_nothing(make_settings, layout_of, make_rows, name) -> None:
    settings = make_settings(model=GATED)
    layout = layout_of(settings)
    plain, gated = (Network(name, layout, model, 0) for model in (make_settings().model, settings.model))
    n_fields = len(layout.fields) + len(layout.event_types)
    for network in (plain, gated):
        torch.nn.init.constant_(network.wide.weight, 0.1)
        for part in network.deep.parameters():
            torch.nn.init.normal_(part, generator=torch.Generator().manual_seed(1))
    embeddings, dense = torch.randn(9, n_fields, plain.embedding_width), torch.randn(9, len(layout.dense))
    wide = torch.randn(9, plain.n_wide)
    assert torch.equal(plain(embeddings, wide, dense), gated(embeddings, wide, dense))
    assert plain.field_weights() == {}
    assert set(gated.field_weights().values()) == {1.0}


def test_the_pull_on_gates_is_their_own(make_settings, layout_of) -> None:
    settings = make_settings(model=GATED)
    network = Network("mmoe", layout_of(settings), settings.model, 0)
    weights = torch.cat([one.detach().reshape(-1) for one in network.parameters()])
    gradient = torch.zeros_like(weights)
    Pull(network, TrainSettings(gate_l1=0.5)).add(gradient, weights)
    at = 0
    for name, one in network.named_parameters():
        part = gradient[at : at + one.numel()]
        assert torch.equal(part, torch.full_like(part, 0.5 if name == "gates" else 0.0)), name
        at += one.numel()


def test_a_field_that_tells_the_label_keeps_its_gate_and_one_that_tells_nothing_loses_it(
    make_settings, layout_of, make_batch
) -> None:
    model = {"expert_layers": (32, 16), "tower": 16, **GATED}
    settings = make_settings(model=model, train={"gate_l1": 0.02, "learning_rate": 3e-3})
    layout = layout_of(settings)
    trainer, rng = Trainer(settings, layout), np.random.default_rng(0)
    for index in range(250):
        batch = make_batch(layout, 128, rng, index)
        batch.rows.dense[:] = 0
        p = np.where(batch.rows.ids[:, 1] % 2 == 0, 0.8, 0.1)[:, None]
        trainer.step(replace(batch, labels=(rng.random(batch.labels.shape) < p).astype(np.float32)))
    weights = trainer.network.field_weights()
    assert list(weights)[:3] == ["user_id", "item_id", "item.category"]
    assert weights["item_id"] > 2 * max(weights["user_id"], weights["item.category"])
