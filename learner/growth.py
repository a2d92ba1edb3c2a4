"""The learner of a model that was given more tasks or fields: its part of a snapshot, as it would be with them.

What was learned stays to the bit: weights, moments, rows, rates, quality. What is new is as in a fresh learner. An
exposure that is open has no label of a new task, neither learned nor measured: nobody knows what came before.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.settings import Settings
from features.growth import Growth, places
from learner.models._axes import Axis, grow
from learner.models._base import Network
from learner.trainer import Groups, Trainer

Arrays = dict[str, NDArray[Any]]

_OF_TASKS = ("balancing", "base_rates", "calibration")
"""Groups whose arrays have a place for each task, and no other axis that tasks or fields change."""
_COUNTS = ("n_learned", "n_positives", "n_late")


def grow_learner(
    groups: Groups, state: Mapping[str, Any], growth: Growth, old: Settings, fresh: Trainer
) -> tuple[Groups, dict[str, Any]]:
    """What :meth:`learner.trainer.Trainer.save` gave under the old settings, as under the fresh trainer's.

    :param fresh: has learned nothing yet.
    :raises ValueError: the model has no place for it.
    """
    before = Network(old.model.name, growth.old.layout, old.model, old.seed)
    if before.embedding_width != fresh.network.embedding_width:
        raise ValueError(f"each task of the model `{old.model.name}` has floats of its own in every embedding row")
    empty, at_first = fresh.save()
    small = {
        name: {key: _by_task(array, empty[name][key], growth) for key, array in groups[name].items()}
        for name in _OF_TASKS
    }
    grown = {
        "dense": grow(groups["dense"], empty["dense"], before.axes, fresh.network.axes),
        "optimizer": _grow_moments(groups["optimizer"], before, fresh.network),
        **small,
        "delay": _grow_delay(groups["delay"], empty["delay"], before, fresh.network),
        "quality": empty["quality"] | groups["quality"],
        "wide": _grow_wide(groups["wide"], empty["wide"], growth),
        "table": _grow_table(groups["table"], empty["table"], growth, fresh.table.capacity),
        "examples": _grow_examples(groups["examples"], empty["examples"], growth),
    }
    new_items = "new_item_events"
    grown["quality"][new_items] = _by_task(groups["quality"][new_items], empty["quality"][new_items], growth)
    detectors = list(at_first["detectors"])
    for place, detector in zip(growth.tasks.tolist(), state["detectors"], strict=True):
        detectors[place] = detector
    quality = at_first["quality"]
    return grown, {
        **state,
        **{name: growth.of_tasks(np.array(state[name]), 0).tolist() for name in _COUNTS},
        "detectors": detectors,
        "quality": {**quality, "parts": {**quality["parts"], **state["quality"]["parts"]}},
    }


def _by_task(old: NDArray[Any], fresh: NDArray[Any], growth: Growth) -> NDArray[Any]:
    """The axis whose length differs is that of the tasks."""
    made = fresh.copy()
    sizes = zip(old.shape, fresh.shape, strict=True)
    made[tuple(slice(None) if had == has else growth.tasks for had, has in sizes)] = old
    return made


def _grow_moments(moments: Arrays, before: Network, now: Network) -> Arrays:
    """The optimiser's, which lie one parameter behind the other in one vector; of what is new: 0."""
    grown = {}
    for name, vector in moments.items():
        if name == "step":
            grown[name] = vector
            continue
        shapes = [one.shape for one in before.parameters()]
        ends = np.cumsum([shape.numel() for shape in shapes])[:-1]
        parts = [part.reshape(shape) for part, shape in zip(np.split(vector, ends), shapes, strict=True)]
        zeros = {key: np.zeros(one.shape, np.float32) for key, one in now.named_parameters()}
        of_parameter = dict(zip(dict(before.named_parameters()), parts, strict=True))
        spread = grow(of_parameter, zeros, before.axes, now.axes)
        grown[name] = np.concatenate([spread[key].reshape(-1) for key in zeros])
    return grown


def _grow_delay(arrays: Arrays, fresh: Arrays, before: Network, now: Network) -> Arrays:
    old_axes, axes = (
        {
            name: (Axis([*one.names.inputs(one.embedding_width).names, "bias"]), Axis(one.names.tasks))
            if array.ndim == 2
            else (Axis(one.names.tasks),)
            for name, array in arrays.items()
        }
        for one in (before, now)
    )
    # What the old tasks had no heads for starts fresh.
    return {**fresh, **grow(arrays, {name: fresh[name] for name in arrays}, old_axes, axes)}


def _grow_table(arrays: Arrays, fresh: Arrays, growth: Growth, capacity: int) -> Arrays:
    """Each field has a cold row in front of the ids' rows; those that no longer fit under the cap are dropped."""
    n_old = len(growth.old.layout.fields)
    fields = places(growth.old.layout.fields, growth.new.layout.fields)
    most = capacity - len(growth.new.layout.fields)
    row = arrays["directory.row"]
    fits = row < most
    grown = dict(arrays)
    for name in ("row", "ids", "last_ms", "attributes", "numbers"):
        grown[f"directory.{name}"] = arrays[f"directory.{name}"][fits]
    free = arrays["directory.free"]
    grown["directory.free"] = free[free < most]
    _, n_evicted, n_used = arrays["directory.counts"].tolist()
    grown["directory.counts"] = np.array(
        [len(grown["directory.free"]), n_evicted + int((~fits).sum()), min(n_used, most)], np.int64
    )
    for name in ("weights", "accumulators"):
        cold = fresh[name].copy()
        cold[fields] = arrays[name][:n_old]
        grown[name] = np.concatenate([cold, arrays[name][n_old:][fits]])
    return grown


def _grow_wide(arrays: Arrays, fresh: Arrays, growth: Growth) -> Arrays:
    """One weight of a cell for each task, and where tasks share, a common one behind them."""
    of_tasks = [*growth.tasks, -1][: arrays["weights"].shape[1]]
    weights = fresh["weights"].copy()
    weights[:, of_tasks] = arrays["weights"]
    return {**arrays, "weights": weights}


def _grow_examples(arrays: Arrays, fresh: Arrays, growth: Growth) -> Arrays:
    late = arrays.get("late", np.zeros_like(arrays["logits"]))
    return {
        **arrays,
        **({"late": growth.of_tasks(late, 1)} if "late" in fresh else {}),
        "ids": growth.of_ids(arrays["ids"]),
        "history": growth.of_kinds(arrays["history"], 1),
        "dense": growth.of_dense(arrays["dense"]),
        "logits": growth.of_tasks(arrays["logits"], 1, np.nan),
        "truth": growth.of_tasks(arrays["truth"], 1, np.nan),
    }
