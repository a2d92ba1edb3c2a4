"""A model for scoring: network, embedding rows, base rates and calibration of one snapshot, read only."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.batch import Float32s, Layout, Rows
from contracts.settings import Settings
from learner.embedding import EmbeddingTable
from learner.models._base import Network, load_network
from learner.models._readout import Readout
from learner.viewers import Viewers
from learner.wide import WideWeights


class FrozenModel:
    """Gives probabilities for encoded rows.

    :param groups: the snapshot's groups ``dense``, ``table``, ``wide``, ``base_rates`` and ``calibration``.
    """

    def __init__(self, settings: Settings, layout: Layout, groups: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        self._network = Network(settings.model.name, layout, settings.model, settings.seed).eval()
        load_network(self._network, groups["dense"])
        self._table = EmbeddingTable(
            settings.embedding,
            self._network.embedding_width,
            layout.slots,
            len(layout.event_types),
            settings.seed,
            settings.model.width if settings.model.history == "attention" else 0,
        )
        self._table.load(groups["table"])
        self._wide = WideWeights(settings.embedding, layout.slots, self._network.n_wide)
        self._wide.load(groups["wide"])
        self._readout = Readout(settings)
        self._readout.load(groups)
        self._layout = layout

    def moved_on(self, delta: Mapping[str, Mapping[str, NDArray[Any]]]) -> "FrozenModel":
        """The model with a delta, given by the same groups; this one stays as it is and goes on scoring."""
        made = copy.copy(self)
        made._network, made._readout = copy.deepcopy(self._network), copy.deepcopy(self._readout)
        made._wide = copy.deepcopy(self._wide)
        made._wide.load(delta["wide"])
        load_network(made._network, delta["dense"])
        made._readout.load(delta)
        made._table = self._table.moved_on(delta["table"])
        return made

    def probabilities(self, rows: Rows) -> Float32s:
        """Shape ``[N, T]``, calibrated; for a task learned against sampled items: the item against a uniform draw."""
        if not len(rows):
            return np.zeros((0, len(self._layout.tasks)), np.float32)
        with torch.inference_mode():
            embedded = self._table.embed(*self._table.rows(rows))
            dense = torch.from_numpy(rows.dense)
            residual = self._network(embedded, self._wide.add_up(rows.ids), dense, Viewers.among(rows, self._layout))
            logits = self._readout.comparable(residual, rows.log_q)
        probabilities: Float32s = torch.from_numpy(logits).sigmoid().numpy()
        return probabilities
