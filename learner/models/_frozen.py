"""A model for scoring: network, embedding rows and base rates of one snapshot, read only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.batch import Float32s, Layout, Rows
from contracts.settings import Settings
from learner.embedding import EmbeddingTable
from learner.losses import BaseRates
from learner.models._base import Network, comparable_logits, load_network


class FrozenModel:
    """Gives probabilities for encoded rows.

    :param groups: the snapshot's groups ``dense``, ``table`` and ``base_rates``.
    """

    def __init__(self, settings: Settings, layout: Layout, groups: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        self._network = Network(settings.model.name, layout, settings.model, settings.seed).eval()
        load_network(self._network, groups["dense"])
        self._table = EmbeddingTable(
            settings.embedding,
            self._network.embedding_width,
            len(layout.fields),
            len(layout.event_types),
            settings.seed,
        )
        self._table.load(groups["table"])
        rates = BaseRates(len(layout.tasks), np.array(settings.immediate_tasks))
        rates.load(groups["base_rates"])
        self._base = rates.logits.numpy()
        self._sampled = np.array(settings.sampled_tasks, np.bool_)

    def probabilities(self, rows: Rows) -> Float32s:
        """Shape ``[N, T]``. For a task learned against sampled items: the item against one drawn uniformly."""
        if not len(rows):
            return np.zeros((0, len(self._base)), np.float32)
        with torch.inference_mode():
            embedded = self._table.embed(*self._table.rows(rows))
            residual = self._network(embedded, torch.from_numpy(rows.dense)).numpy()
        logits = comparable_logits(residual, rows.log_q, self._base, self._sampled)
        probabilities: Float32s = torch.from_numpy(logits).sigmoid().numpy()
        return probabilities
