"""Down-sampling of negatives: less is learned, and the probabilities stay."""

from dataclasses import replace

import numpy as np
import pytest

from contracts.settings import Settings
from learner.trainer import Trainer

N = 256
KEEP = 0.1
NO_SLOT = np.zeros(0, np.int64)


def task(delay):
    return [{"name": "click", "window": "30m", "delay": delay, "wait": "5m"}]


def exposures(layout, make_batch, rng, index):
    """A batch of exposures, and which of them will have an outcome: four in ten, or one in fifty."""
    batch = make_batch(layout, N, rng, index)
    batch.rows.dense[:] = 0
    kind = batch.rows.ids[:, 1:2] % 2 == 0
    return batch, rng.random((N, 1)) < np.where(kind, 0.4, 0.02)


def matured(batch, slot, **masks):
    """The batch with these slots' labels."""
    return replace(batch, matured_slot=slot, **{f"matured_{name}": mask for name, mask in masks.items()})


def stream_of(layout, make_batch, delay, n_batches):
    """Windows close two batches later; a late outcome comes one batch later."""
    rng, shown = np.random.default_rng(0), []
    nothing, everything = np.zeros((N, 1), np.bool_), np.ones((N, 1), np.bool_)
    for index in range(n_batches):
        batch, bought = exposures(layout, make_batch, rng, index)
        shown.append((index % 3 * N + np.arange(N), bought))
        at_once = delay == "fnc_in_loss"
        batch = replace(
            batch, slot=shown[-1][0], labels=np.zeros((N, 1), np.float32), known=nothing, learn=everything & at_once
        )
        if index >= 2:
            slot, label = shown[index - 2]
            batch = matured(
                batch,
                slot,
                labels=label.astype(np.float32),
                known=everything,
                learn=label if at_once else everything,
                late=label & at_once,
            )
        yield batch


@pytest.mark.parametrize("delay", ["wait", "fnc_in_loss"])
def test_a_tenth_of_the_negatives_teaches_the_same_probabilities(make_settings, layout_of, make_batch, delay) -> None:
    settings = make_settings(
        tasks=task(delay), negatives={"keep": KEEP}, model={"expert_layers": (32, 16), "tower": 16}
    )
    layout = layout_of(settings)
    trainer = Trainer(settings, layout)
    n_shown = 0
    for batch in stream_of(layout, make_batch, delay, 480):
        n_shown += len(batch.rows)
        trainer.step(batch)
    report = trainer.quality.report()["click"]
    assert report["examples"] == n_shown - 2 * N, "all are measured"
    assert report["last_half"]["calibration"] == pytest.approx(1.0, abs=0.06)
    assert report["last_half"]["ne"] < 0.95
    assert trainer.base_rates.rates[0] == pytest.approx(0.21, abs=0.02)
    n_negatives = trainer.n_learned[0] - trainer.n_positives[0]
    assert n_negatives / n_shown == pytest.approx(KEEP * (1.0 if delay == "fnc_in_loss" else 0.79), rel=0.1)


def test_the_same_exposures_are_kept_by_a_resumed_run_and_all_positives(
    make_settings, layout_of, make_stream, assert_same
) -> None:
    settings = make_settings(negatives={"keep": KEEP})
    layout, stream = layout_of(settings), make_stream(settings, 10)
    straight, resumed = Trainer(settings, layout), Trainer(settings, layout)
    for batch in stream[:5]:
        straight.step(batch)
    groups, state = straight.save()
    resumed.restore({name: {key: one.copy() for key, one in arrays.items()} for name, arrays in groups.items()}, state)
    for batch in stream[5:]:
        straight.step(batch)
        resumed.step(batch)
    assert_same(straight.save(), resumed.save())
    everything = Trainer(make_settings(), layout)
    for batch in stream:
        everything.step(batch)
    assert straight.n_positives.tolist() == everything.n_positives.tolist()
    # The exposure's own task learns against sampled items: none of them is left out.
    assert straight.n_learned[0] == everything.n_learned[0]
    assert (straight.n_learned[1:] < 0.6 * everything.n_learned[1:]).all()
    np.testing.assert_array_equal(straight.base_rates.rates, everything.base_rates.rates)


@pytest.mark.parametrize("other", [{"mode": "implicit"}, {"train": {"calibration": True}}])
def test_where_a_thinned_stream_would_mislead_it_is_refused(other) -> None:
    with pytest.raises(ValueError, match=r"negatives\.keep is of exposure mode"):
        Settings.model_validate({"negatives": {"keep": 0.5}, **other})
