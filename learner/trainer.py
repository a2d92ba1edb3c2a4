"""One step of the online model.

Order of work, for each batch (DESIGN §3: score, mature, then learn):

1. rank, if asked; then score the new rows with the weights as they are, and keep rows and scores of those that wait;
2. count the quality of every label that became known, by the score of its exposure;
3. learn from those labels: one forward and backward pass over the new rows that are known at once and the matured ones;
4. take the labels into the base rates.
"""

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.batch import Batch, Bools, Float32s, Layout, RankingRows, Rows
from contracts.components import load
from contracts.settings import Settings
from learner.balancing._base import Balancer
from learner.drift._base import DriftDetector
from learner.embedding import EmbeddingTable
from learner.evaluation import Quality
from learner.losses import BaseRates, immediate_logits, masked_bce
from learner.models._base import Network, comparable_logits, load_network
from learner.store import ExampleStore

_MOST_THREADS = 4
_RANKING_CHUNK = 4096


def use_threads(settings: Settings) -> None:
    """Set torch's thread count; results are bitwise repeatable for one thread count only.

    One core is left to the ingest side: threads that wait for each other at every small operation lose more to a busy
    core than they win.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(settings.train.threads or min(max(cores - 1, 1), _MOST_THREADS))


class Trainer:
    """The model, its optimiser, its quality, its drift detectors."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self.layout = layout
        self.network = Network(settings.model.name, layout, settings.model, settings.seed)
        self.table = EmbeddingTable(
            settings.embedding,
            self.network.embedding_width,
            len(layout.fields),
            len(layout.event_types),
            settings.seed,
        )
        immediate = np.array(settings.immediate_tasks, np.bool_)
        self._immediate = torch.from_numpy(immediate)
        self.base_rates = BaseRates(len(layout.tasks), immediate)
        self.quality = Quality(settings.tasks, settings.evaluation.window_ms, oracle=True)
        self.detectors: list[DriftDetector] = [
            load("learner.drift", settings.evaluation.detector).Detector() for _ in settings.tasks
        ]
        self.n_nonfinite = 0
        self.drifted: list[str] = []
        self.losses: dict[str, float] = {}
        self.n_learned = np.zeros(len(layout.tasks), np.int64)
        self.n_positives = np.zeros(len(layout.tasks), np.int64)
        self._sampled = np.array(settings.sampled_tasks, np.bool_)
        self._clip_norm = settings.train.clip_norm
        self._store = ExampleStore(layout)
        self._balancer: Balancer = load("learner.balancing", settings.train.balancing).Balancing(
            [task.weight for task in settings.tasks]
        )
        self._weights, self._gradient = _flatten(self.network)
        self._optimizer = torch.optim.Adam([self._weights], lr=settings.train.learning_rate, fused=True)

    def step(self, batch: Batch) -> None:
        """Score, measure, learn."""
        if batch.ranking is not None:
            self._rank(batch.ranking)
        self.quality.count_new_items(batch.new_item_events)
        self.drifted = []

        at_once = batch.learn.any(1)
        ids, history = self.table.rows(batch.rows, ~batch.sampled)
        base = self.base_rates.logits
        logits = np.empty(batch.labels.shape, np.float32)
        waiting = np.flatnonzero(~at_once)
        if len(waiting):
            with torch.no_grad():
                embedded = self.table.embed(ids[waiting], history[waiting])
                logits[waiting] = (self.network(embedded, torch.from_numpy(batch.rows.dense[waiting])) + base).numpy()

        # Rows must be in the store before labels of this same batch are looked up there.
        self._store.put(batch, logits)
        now, then = np.flatnonzero(at_once), np.flatnonzero(batch.matured_learn.any(1))
        stored = self._store.rows(batch.matured_slot[then])
        stored_ids, stored_history = self.table.rows(stored)
        ids = np.concatenate([ids[now], stored_ids])
        history = np.concatenate([history[now], stored_history])
        dense = torch.from_numpy(np.concatenate([batch.rows.dense[now], stored.dense]))
        labels = np.concatenate([batch.labels[now], batch.matured_labels[then]])
        learn = np.concatenate([batch.learn[now], batch.matured_learn[then]])
        if not len(ids):
            self._measure(batch, logits)
            return

        embedded = self.table.embed(ids, history).requires_grad_()
        scored = self.network(embedded, dense) + base
        logits[now] = scored.detach()[: len(now)].numpy()
        self._store.put(batch, logits)
        self._measure(batch, logits)
        self._learn(immediate_logits(scored, self._immediate), embedded, ids, history, labels, learn)
        self.base_rates.update(labels, learn)

    def measure(self, batch: Batch) -> None:
        """Count the quality of the labels that matured, without learning: at the end of a log."""
        self._measure(batch, np.zeros(batch.labels.shape, np.float32))

    def _measure(self, batch: Batch, logits: Float32s) -> None:
        for task, name in enumerate(self.layout.tasks):
            now = np.flatnonzero(batch.known[:, task])
            later = np.flatnonzero(batch.matured_known[:, task])
            slot = batch.matured_slot[later]
            losses, counts = [], []
            if len(now):
                loss = self.quality.update(task, logits[now, task], batch.labels[now, task], batch.time_ms[now])
                losses.append(loss or 0.0)
                counts.append(len(now))
            if len(later):
                loss = self.quality.update(
                    task,
                    self._store.column("logits", slot)[:, task],
                    batch.matured_labels[later, task],
                    batch.watermark_ms,
                    list_id=self._store.column("list_id", slot),
                    exposure_ms=self._store.column("time_ms", slot),
                    truth=self._store.column("truth", slot)[:, task],
                )
                losses.append(loss or 0.0)
                counts.append(len(later))
            if counts:
                self.losses[name] = float(np.average(losses, weights=counts))
                if self.detectors[task].update(self.losses[name]):
                    self.drifted.append(name)
        self.quality.close_lists(batch.watermark_ms)

    def _learn(
        self,
        logits: torch.Tensor,
        embedded: torch.Tensor,
        ids: NDArray[np.int64],
        history: NDArray[np.int64],
        labels: Float32s,
        learn: Bools,
    ) -> None:
        mask = torch.from_numpy(learn)
        losses = masked_bce(logits, torch.from_numpy(labels), mask)
        total = self._balancer(losses, mask.sum(0), self.base_rates.rates)
        if not torch.isfinite(total):
            self.n_nonfinite += 1
            return
        self._gradient.zero_()
        total.backward()  # type: ignore[no-untyped-call]
        norm = self._gradient.norm()
        if not torch.isfinite(norm):
            self.n_nonfinite += 1
            return
        if norm > self._clip_norm:
            self._gradient.mul_(self._clip_norm / norm)
        self._weights.grad = self._gradient
        self._optimizer.step()
        gradient = embedded.grad
        if gradient is not None:
            self.table.update(ids, history, gradient, float(learn.sum(0).max()))
        self.n_learned += learn.sum(0)
        self.n_positives += np.count_nonzero((labels > 0.5) & learn, axis=0)

    def _rank(self, ranking: RankingRows) -> None:
        candidates = ranking.tie_breaks.shape[1]
        task = np.repeat(ranking.task, candidates)
        scores = np.concatenate(
            [
                self._comparable(_slice(ranking.rows, start, start + _RANKING_CHUNK))
                for start in range(0, len(ranking.rows), _RANKING_CHUNK)
            ]
        )
        chosen = scores[np.arange(len(task)), task].reshape(-1, candidates)
        self.quality.update_ranking(ranking.task, chosen, ranking.tie_breaks)

    def _comparable(self, rows: Rows) -> Float32s:
        with torch.no_grad():
            residual = self.network(self.table.embed(*self.table.rows(rows)), torch.from_numpy(rows.dense))
        return comparable_logits(residual.numpy(), rows.log_q, self.base_rates.logits.numpy(), self._sampled)

    def save(self) -> tuple[dict[str, dict[str, NDArray[Any]]], dict[str, Any]]:
        """Groups of arrays and small state: all that the future depends on."""
        optimizer = self._optimizer.state.get(self._weights, {})
        moments = {name: value.numpy().reshape(-1) for name, value in optimizer.items()}
        quality_state, quality_arrays = self.quality.state()
        groups: dict[str, dict[str, NDArray[Any]]] = {
            "dense": {name: value.numpy() for name, value in self.network.state_dict().items()},
            "optimizer": moments,
            "table": self.table.save(),
            "base_rates": self.base_rates.save(),
            "examples": self._store.save(),
            "quality": quality_arrays,
        }
        state = {
            "quality": quality_state,
            "detectors": [detector.state() for detector in self.detectors],
            "n_nonfinite": self.n_nonfinite,
            "n_learned": self.n_learned.tolist(),
            "n_positives": self.n_positives.tolist(),
        }
        return groups, state

    def restore(self, groups: dict[str, dict[str, NDArray[Any]]], state: dict[str, Any]) -> None:
        """The inverse of :meth:`save`, into a fresh trainer of the same settings."""
        load_network(self.network, groups["dense"])
        moments = groups["optimizer"]
        if moments:
            self._optimizer.state[self._weights] = {
                name: torch.from_numpy(value.copy()).reshape(() if name == "step" else -1)
                for name, value in moments.items()
            }
        self.table.load(groups["table"])
        self.base_rates.load(groups["base_rates"])
        self._store.load(groups["examples"])
        self.quality.restore(state["quality"], groups["quality"])
        for detector, saved in zip(self.detectors, state["detectors"], strict=True):
            detector.restore(saved)
        self.n_nonfinite = state["n_nonfinite"]
        self.n_learned, self.n_positives = np.array(state["n_learned"]), np.array(state["n_positives"])


def _slice(rows: Rows, start: int, end: int) -> Rows:
    return Rows(rows.ids[start:end], rows.history[start:end], rows.dense[start:end], rows.log_q[start:end])


def _flatten(network: Network) -> tuple[torch.nn.Parameter, torch.Tensor]:
    """Make all parameters views of one vector, and their gradients of another: one step, one norm."""
    parameters = list(network.parameters())
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    gradient = torch.zeros_like(flat)
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter.data = flat[start:end].view_as(parameter)
        parameter.grad = gradient[start:end].view_as(parameter)
        start = end
    return torch.nn.Parameter(flat), gradient
