"""The ingest of a model that was given more tasks or fields: its part of a snapshot, as it would be with them.

Exposures that are open keep their windows and labels; the windows of the new tasks run for them as well, and the
learner drops what these bring (:mod:`learner.growth`), since nobody knows what came before.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.batch import Bools, Int64s
from contracts.settings import Settings
from features.growth import Growth, grow_profiles
from streamer.batching import KIND, TASK
from streamer.join import Join, Joiner, outcomes_of

_OWNERS = ("item", "user", "context")
_NONE = -1

Arrays = dict[str, NDArray[Any]]


def grow_ingest(groups: Mapping[str, Arrays], growth: Growth, old: Settings, new: Settings) -> dict[str, Arrays]:
    """The groups of :meth:`streamer.pipeline.Ingest.barrier` under the old settings, as under the new ones."""
    return {
        "profiles": grow_profiles(groups["profiles"], growth),
        "join": _grow_join(groups["join"], growth, _joiner(old), _joiner(new)),
        "seen": groups["seen"],
        "open_batch": _grow_open_batch(groups["open_batch"], growth),
    }


def _joiner(settings: Settings) -> Join:
    return Joiner(settings.tasks, outcomes_of(settings), settings.events.lateness_ms, settings.events.max_open).state


def _grow_open_batch(arrays: Arrays, growth: Growth) -> Arrays:
    grown = dict(arrays)
    integers = grown["integers"] = arrays["integers"].copy()
    integers[KIND] = growth.kinds[integers[KIND]]
    is_positive = integers[TASK] >= 0
    integers[TASK, is_positive] = growth.tasks[integers[TASK, is_positive]]
    for place, owner in enumerate(_OWNERS):
        grown[f"attributes.{place}"] = growth.of_attributes(arrays[f"attributes.{place}"], owner)
        grown[f"numbers.{place}"] = growth.of_numbers(arrays[f"numbers.{place}"], owner)
    if "truth" in arrays:
        grown["truth"] = growth.of_tasks(arrays["truth"], 1, np.nan)
    return grown


def _grow_join(arrays: Arrays, growth: Growth, old: Join, new: Join) -> Arrays:
    grown = dict(arrays)
    for name in ("labels", "waiting", "learned"):
        grown[name] = _moved(arrays[name], growth)
    grown["matured"] = arrays["matured"].copy()
    grown["matured"][:, 1:] = _moved(arrays["matured"][:, 1:], growth)
    # Every open exposure waits in the longest window's lists, in order: so it does in those of a new window.
    known = old.windows_ms.tolist()
    lists = [known.index(window) if window in known else len(known) - 1 for window in new.windows_ms.tolist()]
    for name in ("before", "after", "head", "tail"):
        array = arrays[name]
        grown[name] = array[lists] if known else np.full((len(lists), array.shape[1]), _NONE, array.dtype)
    is_open = arrays["waiting"] != 0
    added = set(range(len(new.task_windows_ms))) - set(growth.tasks.tolist())
    for window, mask in enumerate(new.masks.tolist()):
        tasks = sum(1 << task for task in added if mask >> task & 1)
        if tasks:
            grown["waiting"][_members(grown["head"][window], grown["after"][window], is_open)] |= tasks
    at_once = sum(1 << task for task in added if new.learned_at_once >> task & 1)
    grown["learned"][is_open] |= at_once
    return grown


def _moved(masks: Int64s, growth: Growth) -> Int64s:
    """Bits of the old tasks, at their new places."""
    moved = np.zeros_like(masks)
    for task, place in enumerate(growth.tasks.tolist()):
        moved |= (masks >> task & 1) << place
    return moved


def _members(head: NDArray[np.int32], after: NDArray[np.int32], is_open: Bools) -> Bools:
    """Which slots a window's lists hold, one list for each partition, shape ``[S]``."""
    found = np.zeros_like(is_open)
    for first in head.tolist():
        slot = first
        while slot != _NONE:
            found[slot] = True
            slot = int(after[slot])
    return found
