"""What each index of a parameter belongs to, by name: how weights go into a network of more tasks or fields.

A hidden unit that was learned takes nothing from a new input at first, so that what it says stays as it is, as in
Net2Net (Chen et al., ICLR 2016, arXiv 1511.05641); whatever is new is as in a fresh network.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from contracts.batch import Float32s
from features.growth import places

COMMON = "common to all tasks"


class Axis(NamedTuple):
    """One axis of a parameter: a name for each index; ``is_input``: what is new here is 0 for all that is not."""

    names: Sequence[Hashable]
    is_input: bool = False


Axes = dict[str, tuple[Axis | None, ...]]
"""By parameter; None: an axis that tasks and fields do not change."""


class Names(NamedTuple):
    """What a network is about."""

    tasks: tuple[str, ...]
    embedded: tuple[str, ...]
    """Id fields, then each type's history."""
    dense: tuple[str, ...]

    def inputs(self, width: int) -> Axis:
        """The embeddings' floats, then the dense features."""
        return Axis([*itertools.product(self.embedded, range(width)), *self.dense], is_input=True)


def parallel_axes(prefix: str, networks: Axis, inputs: Axis | None = None) -> Axes:
    """Of a :class:`learner.models._blocks.ParallelLinear`."""
    return {f"{prefix}.weight": (networks, inputs, None), f"{prefix}.bias": (networks, None, None)}


def tower_axes(prefix: str, towers: Sequence[str]) -> Axes:
    """Of :class:`learner.models._blocks.Towers`."""
    return parallel_axes(f"{prefix}.hidden", Axis(towers)) | parallel_axes(f"{prefix}.out", Axis(towers))


def mlp_axes(
    prefix: str, inputs: Axis, networks: Sequence[Hashable], layers: Sequence[int], beside: Sequence[Hashable] = ()
) -> Axes:
    """Of a :class:`learner.models._blocks.ParallelMlp`."""
    outputs = Axis([*itertools.product(networks, range(layers[0])), *beside])
    axes: Axes = {f"{prefix}.weight": (inputs, outputs), f"{prefix}.bias": (outputs,)}
    for place in range(len(layers) - 1):
        axes |= parallel_axes(f"{prefix}.rest.{place}", Axis(networks))
    return axes


def grow(
    old: Mapping[str, Float32s],
    fresh: Mapping[str, Float32s],
    old_axes: Mapping[str, tuple[Axis | None, ...]],
    new_axes: Mapping[str, tuple[Axis | None, ...]],
) -> dict[str, Float32s]:
    """The fresh parameters, with the old ones at the places of their names.

    :raises ValueError: a name is gone.
    """
    grown = {}
    for name, array in fresh.items():
        made = grown[name] = array.copy()
        axes = list(zip(old_axes[name], new_axes[name], strict=True))
        kept = [
            np.arange(made.shape[place]) if before is None or now is None else places(before.names, now.names)
            for place, (before, now) in enumerate(axes)
        ]
        for place, (_, now) in enumerate(axes):
            if now is not None and now.is_input:
                added = np.setdiff1d(np.arange(made.shape[place]), kept[place])
                made[np.ix_(*kept[:place], added, *kept[place + 1 :])] = 0.0
        made[np.ix_(*kept)] = old[name]
    return grown
