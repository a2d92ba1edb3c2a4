"""One step of the online model.

Order of work, for each batch (DESIGN §3: score, mature, then learn):

1. rank, if asked; then score the new rows with the weights as they are, and keep rows and scores of those that wait;
2. count the quality of every label that became known, by what was served for its exposure: the logit as calibrated at
   that moment; the drift detectors watch the same loss;
3. learn from those labels: one forward and backward pass over the new rows that are known at once and the matured ones;
   calibration learns from what that forward pass gave them, before the step;
4. take the labels into the base rates.
"""

import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.batch import Batch, Bools, Float32s, Int64s, Layout, RankingRows, Rows
from contracts.components import load
from contracts.settings import Settings
from learner.balancing._base import Balancer
from learner.balancing._cosine import task_gradient_cosines
from learner.drift._base import DriftDetector
from learner.embedding import EmbeddingTable
from learner.evaluation import Quality
from learner.losses import count_labels
from learner.models._base import Network, load_network
from learner.models._readout import Readout
from learner.objective import Objective
from learner.regularise import Pull, with_dropout
from learner.store import ExampleStore

Groups = dict[str, dict[str, NDArray[Any]]]

_MOST_THREADS = 4
_RANKING_CHUNK = 4096
_COSINES_EVERY = 200
"""Learning steps between two looks at the tasks' gradients: each is a backward pass a task."""


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
        train = settings.train
        self.network = Network(
            settings.model.name, layout, settings.model, settings.seed, _precision(train.precision), train.dropout
        ).eval()
        self.table = EmbeddingTable(
            settings.embedding,
            self.network.embedding_width,
            len(layout.fields),
            len(layout.event_types),
            settings.seed,
        )
        self.readout = Readout(settings)
        self.base_rates = self.readout.base_rates
        self.quality = Quality(settings.tasks, settings.evaluation.window_ms, oracle=True)
        self.detectors: list[DriftDetector] = [
            load("learner.drift", settings.evaluation.detector).Detector() for _ in settings.tasks
        ]
        self.n_nonfinite = 0
        self.drifted: list[str] = []
        self.losses: dict[str, float] = {}
        self.cosines: dict[tuple[str, str], float] = {}
        self.n_learned = np.zeros(len(layout.tasks), np.int64)
        self.n_positives = np.zeros(len(layout.tasks), np.int64)
        self._n_steps = 0
        self._seed, self._dropout = settings.seed, train.dropout
        self._clip_norm = train.clip_norm
        self._store = ExampleStore(layout)
        self._balancer: Balancer = load("learner.balancing", train.balancing).Balancing(
            [task.weight for task in settings.tasks]
        )
        self._objective = Objective(settings)
        self._pull = Pull(self.network, train)
        self._parameters = list(self.network.parameters())
        self._weights = _flatten(self._parameters)
        self._optimizer = torch.optim.Adam([self._weights], lr=train.learning_rate, fused=True)

    def step(self, batch: Batch) -> None:
        """Score, measure, learn."""
        if batch.ranking is not None:
            self._rank(batch.ranking)
        self.quality.count_new_items(batch.new_item_events)
        self.drifted = []

        at_once = batch.learn.any(1)
        ids, history = self.table.rows(batch.rows, ~batch.sampled)
        raw = np.empty(batch.labels.shape, np.float32)
        waiting = np.flatnonzero(~at_once)
        if len(waiting):
            with torch.no_grad():
                embedded = self.table.embed(ids[waiting], history[waiting])
                residual = self.network(embedded, torch.from_numpy(batch.rows.dense[waiting]))
                raw[waiting] = self.readout.raw(self.readout.conditional(residual)).numpy()

        # Rows must be in the store before labels of this same batch are looked up there.
        self._store.put(batch)
        now, then = np.flatnonzero(at_once), np.flatnonzero(self._to_learn(batch))
        stored = self._store.rows(batch.matured_slot[then])
        stored_ids, stored_history = self.table.rows(stored)
        ids = np.concatenate([ids[now], stored_ids])
        history = np.concatenate([history[now], stored_history])
        dense = torch.from_numpy(np.concatenate([batch.rows.dense[now], stored.dense]))
        labels = np.concatenate([batch.labels[now], batch.matured_labels[then]])
        learn = np.concatenate([batch.learn[now], batch.matured_learn[then]])
        final = np.concatenate([batch.known[now], batch.matured_known[then]])
        if not len(ids):
            self._take_scores(batch, raw)
            return

        embedded = self.table.embed(ids, history).requires_grad_()
        conditional = self.readout.conditional(self.network(embedded, dense))
        learned = self.readout.raw(conditional.detach()).numpy()
        raw[now] = learned[: len(now)]
        self._take_scores(batch, raw)
        self.readout.calibrate(learned, labels, learn)
        if self._dropout:  # scored as served, without; learned with
            residual = with_dropout(self.network, embedded, dense, self._seed + self._n_steps)
            conditional = self.readout.conditional(residual)
        counts, positives = count_labels(labels, learn)
        losses = self._objective(
            conditional, torch.from_numpy(labels), torch.from_numpy(learn), torch.from_numpy(final)
        )
        self._n_steps += 1
        if self._n_steps % _COSINES_EVERY == 0:
            self._compare_gradients(losses, embedded)
        total = self._balancer(losses, torch.from_numpy(counts), self.base_rates.rates, embedded)
        if self._learn(total, embedded, ids, history, float(counts.max())):
            self.n_learned += counts
            self.n_positives += positives
        self.base_rates.update(counts, positives)
        self.table.decay(batch.watermark_ms)

    def _to_learn(self, batch: Batch) -> Bools:
        """Shape ``[M]``: matured rows that go through the network."""
        wanted = batch.matured_learn | (batch.matured_known & self._objective.settling)
        return np.asarray(wanted.any(1))

    def _take_scores(self, batch: Batch, raw: Float32s) -> None:
        """Keep what is served, and measure the labels that became known by it."""
        served = self.readout.served(raw)
        self._store.put_logits(batch.slot, served)
        self._measure(batch, served)

    def _compare_gradients(self, losses: torch.Tensor, embedded: torch.Tensor) -> None:
        cosines = task_gradient_cosines(losses, embedded)
        pairs = itertools.combinations(range(len(self.layout.tasks)), 2)
        self.cosines = {
            (self.layout.tasks[a], self.layout.tasks[b]): float(cosines[a, b])
            for a, b in pairs
            if not math.isnan(cosines[a, b])
        }

    def measure(self, batch: Batch) -> None:
        """Count the quality of the labels that matured, without learning: at the end of a log."""
        self._measure(batch, np.zeros(batch.labels.shape, np.float32))

    def _measure(self, batch: Batch, logits: Float32s) -> None:
        for task, name in enumerate(self.layout.tasks):
            now = np.flatnonzero(batch.known[:, task])
            later = np.flatnonzero(batch.matured_known[:, task])
            slot = batch.matured_slot[later]
            total, count = 0.0, 0
            if len(now):
                loss = self.quality.update(task, logits[now, task], batch.labels[now, task], batch.time_ms[now])
                total, count = total + (loss or 0.0) * len(now), count + len(now)
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
                total, count = total + (loss or 0.0) * len(later), count + len(later)
            if count:
                self.losses[name] = total / count
                if self.detectors[task].update(self.losses[name]):
                    self.drifted.append(name)
        self.quality.close_lists(batch.watermark_ms)

    def _learn(
        self, total: torch.Tensor, embedded: torch.Tensor, ids: Int64s, history: Int64s, n_examples: float
    ) -> bool:
        """One step against the gradient of the total loss; False, and no step, where it is not finite."""
        if not math.isfinite(total.item()):
            self.n_nonfinite += 1
            return False
        of_embedded, *of_weights = torch.autograd.grad(total, [embedded, *self._parameters], materialize_grads=True)
        gradient = torch.cat([one.reshape(-1) for one in of_weights])
        norm = gradient.norm().item()
        if not math.isfinite(norm):
            self.n_nonfinite += 1
            return False
        if norm > self._clip_norm:
            gradient.mul_(self._clip_norm / norm)
        self._pull.add(gradient, self._weights.detach())
        self._weights.grad = gradient
        self._optimizer.step()
        self.table.update(ids, history, of_embedded, n_examples, self._pull.l1, self._pull.l2)
        return True

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
        return self.readout.comparable(residual, rows.log_q)

    def save(self) -> tuple[Groups, dict[str, Any]]:
        """Groups of arrays and small state: all that the future depends on, valid until the next save or capture."""
        finish, state = self.capture()
        return finish(), state

    def capture(self) -> tuple[Callable[[], Groups], dict[str, Any]]:
        """What :meth:`save` gives, cut now. The groups are put together when called for, while learning goes on.

        Stops for a copy of the dense weights and of the rows that changed since the last capture. The call is due
        before the next one, and so is the encoding of the state.
        """
        quality_state, quality_arrays = self.quality.state()
        small: Groups = {
            "dense": {name: value.numpy() for name, value in self.network.state_dict().items()},
            "optimizer": {name: value.numpy().reshape(-1) for name, value in self._moments().items()},
            "balancing": self._balancer.state(),
            **self.readout.save(),
            "quality": quality_arrays,
        }
        small = {group: {name: array.copy() for name, array in arrays.items()} for group, arrays in small.items()}
        table, examples = self.table.capture(), self._store.capture()
        state = {
            "quality": quality_state,
            "detectors": [detector.state() for detector in self.detectors],
            "n_steps": self._n_steps,
            "n_nonfinite": self.n_nonfinite,
            "n_learned": self.n_learned.tolist(),
            "n_positives": self.n_positives.tolist(),
        }
        return lambda: {**small, "table": table(), "examples": examples()}, state

    def capture_delta(self) -> Callable[[], Groups]:
        """What scoring needs of that which changed since the last capture, cut now: weights, rows, readout."""
        small: Groups = {
            "dense": {name: value.numpy() for name, value in self.network.state_dict().items()},
            **self.readout.save(),
        }
        small = {group: {name: array.copy() for name, array in arrays.items()} for group, arrays in small.items()}
        table = self.table.capture_delta()
        return lambda: {**small, "table": table()}

    def _moments(self) -> dict[str, torch.Tensor]:
        moments: dict[str, torch.Tensor] = self._optimizer.state.get(self._weights, {})
        return moments

    def restore(self, groups: Groups, state: dict[str, Any]) -> None:
        """The inverse of :meth:`save`, into a fresh trainer of the same settings."""
        load_network(self.network, groups["dense"])
        if groups["optimizer"]:
            self._optimizer.state[self._weights] = {
                name: torch.from_numpy(value.copy()).reshape(() if name == "step" else -1)
                for name, value in groups["optimizer"].items()
            }
        self.table.load(groups["table"])
        self._balancer.restore(groups["balancing"])
        self.readout.load(groups)
        self._store.load(groups["examples"])
        self.quality.restore(state["quality"], groups["quality"])
        for detector, saved in zip(self.detectors, state["detectors"], strict=True):
            detector.restore(saved)
        self._n_steps, self.n_nonfinite = state["n_steps"], state["n_nonfinite"]
        self.n_learned, self.n_positives = np.array(state["n_learned"]), np.array(state["n_positives"])


def _slice(rows: Rows, start: int, end: int) -> Rows:
    return Rows(rows.ids[start:end], rows.history[start:end], rows.dense[start:end], rows.log_q[start:end])


def _precision(name: str) -> torch.dtype:
    """The setting `train.precision`; `auto` is bfloat16 where the processor multiplies it itself."""
    if name == "auto":
        name = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _flatten(parameters: list[torch.nn.Parameter]) -> torch.nn.Parameter:
    """Make all parameters views of one vector: one step for all."""
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter.data = flat[start:end].view_as(parameter)
        start = end
    return torch.nn.Parameter(flat)
