"""The delay head, and the link that takes a late positive's earlier negative back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from learner.calibration import OnlinePlatt
from learner.delay import DelayHead, delayed_logits
from learner.elapsed import ElapsedSampling, late_share, weights
from learner.losses import immediate_logits
from learner.metrics import LearnerMetrics
from learner.trainer import Trainer

N = 128
NO_SLOT = np.zeros(0, np.int64)


def test_where_all_is_late_or_nothing_the_link_is_the_known_one() -> None:
    logits = torch.linspace(-30, 30, 61)[:, None]
    never = delayed_logits(logits, torch.zeros_like(logits))
    always = delayed_logits(logits, torch.ones_like(logits))
    torch.testing.assert_close(never, logits, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(always, immediate_logits(logits, torch.tensor([True])), atol=1e-5, rtol=1e-6)


def test_the_probability_that_fits_the_stream_best_is_the_true_one() -> None:
    """p = 0.3, of which 40 % come late: 0.3 positives on 0.7 + 0.12 negatives."""
    logit = torch.zeros(1, 1, requires_grad=True)
    late = torch.full((1, 1), 0.4)
    optimizer = torch.optim.Adam([logit], lr=0.05)
    for _ in range(400):
        stream = delayed_logits(logit, late)
        loss = -0.3 * torch.nn.functional.logsigmoid(stream) - 0.82 * torch.nn.functional.logsigmoid(-stream)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert torch.sigmoid(logit).item() == pytest.approx(0.3, abs=1e-3)


def tasks(delay="delay_head"):
    return [{"name": "click", "window": "30m", "delay": delay, "wait": "5m"}]


def test_the_head_learns_which_outcomes_come_late(make_settings) -> None:
    head, rng = DelayHead(make_settings(tasks=tasks()), 3), np.random.default_rng(0)
    for _ in range(1500):
        dense = torch.from_numpy(rng.normal(size=(N, 3)).astype(np.float32))
        embedded = torch.zeros(N, 0, 4)
        positive = rng.random((N, 1)) < 0.5
        p = torch.sigmoid(2 * dense[:, :1] - 1).numpy()
        head.learn(embedded, dense, head.late(embedded, dense), positive, positive & (rng.random((N, 1)) < p))
    probe = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [-1.0, 0, 0]])
    expected = torch.sigmoid(2 * probe[:, :1] - 1)
    torch.testing.assert_close(head.late(torch.zeros(3, 0, 4), probe), expected, atol=0.06, rtol=0)


def test_weighed_by_es_dfm_the_stream_fits_the_true_probability_best() -> None:
    """p = 0.3, of which 40 % come late: f_dp = 0.12, and 0.12 of the 0.82 exposures without an outcome are fake."""
    said = {"late": torch.full((2, 1), 0.12), "fake": torch.full((2, 1), 0.12 / 0.82)}
    positive, negative = weights(said, torch.tensor([[1.0], [0.0]])).squeeze(1)
    assert (0.3 * positive / (0.3 * positive + 0.82 * negative)).item() == pytest.approx(0.3, abs=1e-6)
    assert late_share(said, torch.full((1, 1), 0.3).logit())[0].item() == pytest.approx(0.4, abs=1e-6)


def test_the_weights_of_es_dfm_come_from_closed_windows_alone(make_settings) -> None:
    """Half of the examples have an outcome, at a rate that x tells it comes late; four of five windows are closed."""
    elapsed, rng = ElapsedSampling(make_settings(tasks=tasks("es_dfm")), 1), np.random.default_rng(0)
    for _ in range(1500):
        dense = torch.from_numpy(rng.choice([-1.0, 1.0], (N, 1)).astype(np.float32))
        embedded, bought = torch.zeros(N, 0, 4), rng.random((N, 1)) < 0.5
        late = bought & (rng.random((N, 1)) < np.where(dense.numpy() > 0, 0.8, 0.2))
        final = rng.random((N, 1)) < 0.8
        # What is not final yet looks as if nothing came late.
        elapsed.learn(embedded, dense, elapsed.predict(embedded, dense), bought, late & final, final)
    said = elapsed.predict(torch.zeros(2, 0, 4), torch.tensor([[1.0], [-1.0]]))
    assert said["late"].squeeze(1).tolist() == pytest.approx([0.4, 0.1], abs=0.03)
    assert said["fake"].squeeze(1).tolist() == pytest.approx([0.4 / 0.9, 0.1 / 0.6], abs=0.03)


@pytest.fixture(params=["delay_head", "es_dfm"])
def delayed_stream(request, make_settings, layout_of, make_batch):
    """Examples learned one batch after their exposure, outcomes of the second kind of item two batches later still."""
    settings = make_settings(tasks=tasks(request.param), model={"expert_layers": (32, 16), "tower": 16})
    layout, rng = layout_of(settings), np.random.default_rng(0)
    nothing = np.zeros((N, 1), np.bool_)
    shown, batches = [], []
    for index in range(300):
        batch = make_batch(layout, N, rng, index)
        kind = batch.rows.ids[:, 1:2] % 2 == 0
        batch.rows.dense[:] = kind
        bought = rng.random((N, 1)) < np.where(kind, 0.5, 0.2)
        late = bought & (rng.random((N, 1)) < np.where(kind, 0.8, 0.2))
        shown.append((index % 4 * N + np.arange(N), bought, late))
        if index >= 3:
            waited, final = shown[index - 1], shown[index - 3]
            parts = [  # slot, label, known, learn, late: after the wait, a late outcome, the end of the window
                (waited[0], waited[1] & ~waited[2], nothing, ~nothing, nothing),
                (final[0], final[2], nothing, final[2], final[2]),
                (final[0], final[1], ~nothing, nothing, nothing),
            ]
            slot, labels, known, learn, more = (np.concatenate(column) for column in zip(*parts, strict=True))
        else:
            slot, labels, known, learn, more = NO_SLOT, *(nothing[:0] for _ in range(4))
        batches.append(
            replace(
                batch,
                slot=shown[-1][0],
                labels=np.zeros((N, 1), np.float32),
                known=nothing,
                learn=nothing,
                matured_slot=slot,
                matured_labels=labels.astype(np.float32),
                matured_known=known,
                matured_learn=learn,
                matured_late=more,
            )
        )
    return settings, layout, batches


def test_behind_a_wait_the_probabilities_are_those_of_the_final_labels(delayed_stream) -> None:
    settings, layout, batches = delayed_stream
    trainer = Trainer(settings, layout)
    for batch in batches:
        trainer.step(batch)
    report = trainer.quality.report()["click"]["last_half"]
    assert report["ne"] < 0.97
    assert report["calibration"] == pytest.approx(1.0, abs=0.05)
    assert trainer.base_rates.rates[0] == pytest.approx(0.35, abs=0.03)
    registry = CollectorRegistry()
    metrics = LearnerMetrics(registry, "adwin")
    metrics.begin(Trainer(settings, layout))
    metrics.refresh(trainer, 0)
    late, positives = (
        registry.get_sample_value(f"anabranch_train_{name}_total", {"task": "click"})
        for name in ("late_positives", "positives")
    )
    assert late / positives == pytest.approx(0.63, abs=0.05)


def test_behind_a_wait_a_resumed_run_learns_the_same(delayed_stream, assert_same) -> None:
    settings, layout, batches = delayed_stream
    straight = Trainer(settings, layout)
    for batch in batches[:12]:
        straight.step(batch)
    resumed = Trainer(settings, layout)
    groups, state = straight.save()
    resumed.restore({name: {key: one.copy() for key, one in arrays.items()} for name, arrays in groups.items()}, state)
    for batch in batches[12:20]:
        straight.step(batch)
        resumed.step(batch)
    assert_same(straight.save(), resumed.save())


def test_calibration_knows_that_a_late_positive_was_a_negative_before() -> None:
    """The network says 0.5 too high a logit; the stream holds each late positive twice."""
    rng, platt = np.random.default_rng(0), OnlinePlatt(1)
    for _ in range(400):
        z = rng.normal(-1, 1, 256)
        bought = rng.random(256) < 1 / (1 + np.exp(-z))
        late = bought & (rng.random(256) < 0.5)
        raw = np.concatenate([z, z[late]]) + 0.5
        labels = np.concatenate([bought & ~late, np.ones(late.sum())])
        platt.update(0, raw.astype(np.float32), labels.astype(np.float32), 0.5)
    assert platt.slopes[0] == pytest.approx(1.0, abs=0.05)
    assert platt.shifts[0] == pytest.approx(-0.5, abs=0.05)


def test_a_late_positive_weighs_as_much_as_its_negative_in_batches_of_other_sizes(
    make_settings, layout_of, make_batch
) -> None:
    """Big and small batches take turns; what was shown in a big one is bought within the small one behind it."""
    settings = make_settings(tasks=tasks("fnc_in_loss"))
    layout, rng = layout_of(settings), np.random.default_rng(0)
    trainer = Trainer(settings, layout)
    big, small = 240, 16
    shown = np.arange(big)
    for index in range(400):
        n = small if index % 2 else big
        batch = make_batch(layout, n, rng, index)
        batch.rows.dense[:] = 0
        nothing = np.zeros((n, 1), np.bool_)
        bought = shown[rng.random(big) < 0.1] if index % 2 else NO_SLOT
        one = np.ones((len(bought), 1), np.bool_)
        trainer.step(
            replace(
                batch,
                slot=np.full(n, -1, np.int64) if index % 2 else shown,
                labels=nothing.astype(np.float32),
                known=nothing,
                learn=nothing if index % 2 else ~nothing,
                matured_slot=bought,
                matured_labels=one.astype(np.float32),
                matured_known=~one,
                matured_learn=one,
                matured_late=one,
            )
        )
    said = torch.sigmoid(torch.from_numpy(trainer.logits(batch.rows))).mean().item()
    assert said == pytest.approx(0.1, rel=0.15)
