"""One step of the online model.

Order of work, for each batch (DESIGN §3: score, mature, then learn):

0. all that could be NaN or infinite is computed first; where it is, the batch is skipped as a whole
   (:attr:`Trainer.skipped`), and what its exposures bring later is not counted either;
1. rank, if asked; then score the new rows with the weights as they are, and keep rows and scores of those that wait;
2. count the quality of every label that became known, by what was served for its exposure: the logit as calibrated at
   that moment; the drift detectors watch the same loss;
3. learn from those labels: one forward and backward pass over the new rows that are known at once and the matured ones;
   calibration learns from what that forward pass gave them, before the step;
4. take the labels into the base rates.
"""

import copy
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.batch import Batch, Bools, Float32s, Int64s, Layout, RankingRows, Rows
from contracts.components import load
from contracts.settings import Settings
from learner.adam import Adam
from learner.balancing._base import Balancer
from learner.balancing._cosine import task_gradient_cosines
from learner.delay import DelayHead
from learner.drift._base import DriftDetector
from learner.elapsed import ElapsedSampling, late_share, weights
from learner.embedding import EmbeddingTable
from learner.evaluation import Quality
from learner.losses import count_labels
from learner.models._base import Network, gate_entropies, load_network
from learner.models._readout import Readout
from learner.objective import Objective
from learner.quarantine import REASONS, NotFiniteError, require_finite
from learner.regularise import Pull, with_dropout
from learner.store import ExampleStore
from learner.thinning import Thinning
from learner.viewers import Viewers
from learner.watchdog import Watchdog
from learner.wide import WideWeights

Groups = dict[str, dict[str, NDArray[Any]]]

_MOST_THREADS = 4
_RANKING_CHUNK = 4096
_LOOK_EVERY = 200
"""Learning steps between two looks at the tasks' gradients, each a backward pass a task, and at their gates."""
_MEAN_ROWS_STEPS = 1000
"""Learning steps that the mean size of a batch looks back over, as Adam's second moment does."""
_RATED_ROWS = 64
"""Rows of a batch that `train.learning_rate` is for; where batches are bigger, it is times the root of the ratio."""
_WATCH_EVERY = 50
"""Learning steps between two looks of the watchdog: adding up the window costs more than a step should."""


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
            layout.slots,
            len(layout.event_types),
            settings.seed,
            settings.model.width if settings.model.history == "attention" else 0,
        )
        self._wide = WideWeights(settings.embedding, layout.slots, self.network.n_wide)
        self.readout = Readout(settings)
        self.base_rates = self.readout.base_rates
        self.quality = Quality(settings.tasks, settings.evaluation.window_ms, oracle=True)
        self.detectors: list[DriftDetector] = [
            load("learner.drift", settings.evaluation.detector).Detector() for _ in settings.tasks
        ]
        self.watchdog = Watchdog(layout.tasks, settings.snapshot)
        self.skipped: NotFiniteError | None = None
        self.n_skipped = dict.fromkeys(REASONS, 0)
        self.drifted: list[str] = []
        self.losses: dict[str, float] = {}
        self.cosines: dict[tuple[str, str], float] = {}
        self.gate_entropies: dict[str, float] = {}
        self.n_learned = np.zeros(len(layout.tasks), np.int64)
        self.n_positives = np.zeros(len(layout.tasks), np.int64)
        self.n_late = np.zeros(len(layout.tasks), np.int64)
        self._n_steps, self._mean_rows = 0, 0.0
        self._seed, self._dropout = settings.seed, train.dropout
        self._clip_norm = train.clip_norm
        self._store = ExampleStore(layout, settings.events.max_open, keeps_late=any(settings.es_dfm_tasks))
        self._balancer: Balancer = load("learner.balancing", train.balancing).Balancing(settings.task_weights)
        self._objective, self._thinning = Objective(settings), Thinning(settings)
        n_embeddings = len(layout.fields) + len(layout.event_types)
        n_features = n_embeddings * self.network.embedding_width + len(layout.dense)
        self._delay, self._elapsed = DelayHead(settings, n_features), ElapsedSampling(settings, n_features)
        self._pull = Pull(self.network, train)
        self._parameters = list(self.network.parameters())
        self._weights = _flatten(self._parameters)
        self._optimizer = Adam(self._weights, train.learning_rate)

    def step(self, batch: Batch) -> None:
        """Score, measure, learn; or skip the batch as a whole, for the reason in :attr:`skipped`."""
        self.drifted, self.skipped = [], None
        # Rows must be in the store before labels of this same batch are looked up there.
        self._store.put(batch)
        balance = copy.deepcopy(self._balancer.state())
        try:
            self._take(self._without_skipped(batch))
        except NotFiniteError as error:
            self._balancer.restore(balance)
            self._store.skip(batch.slot)
            self.n_skipped[error.reason] += 1
            self.skipped = error

    def _take(self, batch: Batch) -> None:
        """One step.

        :raises NotFiniteError: a score, the loss or a gradient; nothing but the balancing has changed.
        """
        batch, n_left_out = self._thinning.thinned(batch, self._store)
        ranked = None if batch.ranking is None else self._rank(batch.ranking)
        at_once = batch.learn.any(1)
        raw = np.empty(batch.labels.shape, np.float32)
        waiting = np.flatnonzero(~at_once)
        if len(waiting):
            residual = self._residual(batch.rows.at(waiting))
            raw[waiting] = self.readout.raw(self.readout.conditional(residual)).numpy()

        now, then = np.flatnonzero(at_once), np.flatnonzero(self._to_learn(batch))
        all_at_once = len(now) == len(batch.rows)
        new = batch.rows if all_at_once else batch.rows.at(now)
        rows = Rows.joined([new, self._store.rows(batch.matured_slot[then])])
        if not len(rows):
            require_finite("score", bool(np.isfinite(raw).all()), batch.rows.dense, self.layout)
            self._see(batch)
            self._take_scores(batch, raw, ranked)
            if n_left_out.any():
                self.base_rates.update(n_left_out, np.zeros_like(n_left_out))
            return
        labels = np.concatenate([batch.labels[now], batch.matured_labels[then]])
        learn = np.concatenate([batch.learn[now], batch.matured_learn[then]])
        final = np.concatenate([batch.known[now], batch.matured_known[then]])
        came_late = np.concatenate([np.zeros_like(batch.known[now]), batch.matured_late[then]])

        # A look: what a sound batch admits afterwards starts as a copy of the cold row that is looked at here.
        ids, history = self.table.rows(rows)
        viewers, dense = Viewers.among(rows, self.layout), torch.from_numpy(rows.dense)
        embedded, wide = self.table.embed(ids, history).requires_grad_(), self._wide.add_up(rows.ids).requires_grad_()
        conditional = self.readout.conditional(self.network(embedded, wide, dense, viewers))
        learned = self.readout.raw(conditional.detach()).numpy()
        raw[now] = learned[: len(now)]
        scored = bool(np.isfinite(raw).all() and np.isfinite(learned).all())
        require_finite("score", scored, np.concatenate([batch.rows.dense, rows.dense]), self.layout)
        late = self._delay.late(embedded, dense) if self._delay.is_used else None
        behind = self._elapsed.predict(embedded, dense) if self._elapsed.is_used else None
        if self._dropout:  # scored as served, without; learned with
            residual = with_dropout(self.network, embedded, wide, dense, self._seed + self._n_steps, viewers)
            conditional = self.readout.conditional(residual)
        counts, positives = count_labels(labels, learn)
        n_late = came_late.sum(0)
        losses = self._objective(
            conditional,
            torch.from_numpy(labels),
            torch.from_numpy(learn),
            torch.from_numpy(final),
            late,
            weights(behind, torch.from_numpy(labels)) if behind else None,
        )
        if (self._n_steps + 1) % _LOOK_EVERY == 0:
            self._compare_gradients(losses, embedded)
            self._look_at_gates(embedded, dense)
        total = self._balancer(losses, torch.from_numpy(counts), self.base_rates.rates, embedded)
        require_finite("loss", math.isfinite(total.item()), rows.dense, self.layout)
        of_embedded, of_wide, *of_weights = torch.autograd.grad(
            total, [embedded, wide, *self._parameters], materialize_grads=True
        )
        gradient = torch.cat([one.reshape(-1) for one in of_weights])
        # A mean loss would let an example of a small batch weigh more than its like in a big one (ADR 21).
        n_rows, step = float(counts.max()), self._n_steps + 1
        mean_rows = self._mean_rows + (n_rows - self._mean_rows) / min(step, _MEAN_ROWS_STEPS)
        gradient.mul_(n_rows / mean_rows)
        norm = gradient.norm().item()
        require_finite("gradient", math.isfinite(norm + of_embedded.norm().item()), rows.dense, self.layout)

        # Sound: from here on the batch leaves its traces.
        self._n_steps, self._mean_rows = step, mean_rows
        n_evicted, n_rows_before = self.table.n_evicted, self.table.n_rows
        self._see(batch, ids[: len(now)] if all_at_once else None)
        if self.table.n_evicted != n_evicted:
            ids, history = self.table.rows(rows)
        elif self.table.n_rows != n_rows_before:
            self.table.look_again(rows, ids, history)
        self._take_scores(batch, raw, ranked)
        share = self._late_share(late, behind, torch.from_numpy(learned))
        self.readout.calibrate(learned, labels, learn, None if share is None else share.numpy())
        self._descend(gradient, norm)
        self.network.spread.observe(dense)
        self.table.update(ids, history, of_embedded, n_rows, self._pull.l1, self._pull.l2)
        self._wide.update(rows.ids, of_wide, n_rows, self._pull.l1, self._pull.l2)
        self.n_learned += counts
        self.n_positives += positives
        self.n_late += n_late
        if late is not None:
            self._delay.learn(embedded.detach(), dense, late, learn & (labels > 0), came_late)
        if behind:
            was_late = np.concatenate(
                [np.zeros_like(batch.known[now]), self._store.came_late(batch.matured_slot[then])]
            )
            self._elapsed.learn(embedded.detach(), dense, behind, labels > 0, was_late, final)
        self.base_rates.update(counts + n_left_out, positives, n_late)
        self._wide.forget(self.table.decay(batch.watermark_ms))
        if self._n_steps % _WATCH_EVERY == 0:
            self.watchdog.look(self.quality.window(batch.watermark_ms), batch.watermark_ms)

    def _late_share(
        self, late: torch.Tensor | None, behind: dict[str, torch.Tensor] | None, raw: torch.Tensor
    ) -> torch.Tensor | None:
        """Of the positives, shape ``[N, T]``, as a task's head or heads say; None where no task has any."""
        if not behind:
            return late
        share = late_share(behind, raw)
        return share if late is None else torch.where(self._delay.tasks, late, share)

    def _without_skipped(self, batch: Batch) -> Batch:
        """The batch without the labels of exposures that were skipped, or are older than their task."""
        skipped = self._store.skipped(batch.matured_slot)
        if not skipped.any():
            return batch
        kept = ~skipped
        return replace(batch, matured_known=batch.matured_known & kept, matured_learn=batch.matured_learn & kept)

    def _see(self, batch: Batch, found: Int64s | None = None) -> None:
        """Count the batch's ids as seen; ``found``: their rows in the table, where they are known."""
        self.table.see(batch.rows.ids, ~batch.sampled, found)

    def _to_learn(self, batch: Batch) -> Bools:
        """Shape ``[M]``: matured rows that go through the network."""
        wanted = batch.matured_learn | (batch.matured_known & self._objective.settling)
        return np.asarray(wanted.any(1))

    @property
    def n_waiting_bytes(self) -> int:
        """Memory of the examples that wait for labels."""
        return self._store.n_bytes

    def matured_rows(self, batch: Batch) -> Rows:
        """Features of the exposures that the batch brings labels for."""
        return self._store.rows(batch.matured_slot)

    def _take_scores(self, batch: Batch, raw: Float32s, ranked: Float32s | None) -> None:
        """Keep what is served, and measure the labels that became known by it."""
        if batch.ranking is not None and ranked is not None:
            self.quality.update_ranking(batch.ranking.task, ranked, batch.ranking.tie_breaks)
        self.quality.count_new_items(batch.new_item_events)
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

    def _look_at_gates(self, embedded: torch.Tensor, dense: torch.Tensor) -> None:
        with torch.no_grad():
            weights = self.network.expert_weights(embedded, dense)
        if weights is not None:
            self.gate_entropies = dict(zip(self.layout.tasks, gate_entropies(weights).tolist(), strict=True))

    def measure(self, batch: Batch) -> None:
        """Count the quality of the labels that matured, without learning: at the end of a log."""
        self._measure(self._without_skipped(batch), np.zeros(batch.labels.shape, np.float32))

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

    def _descend(self, gradient: torch.Tensor, norm: float) -> None:
        """One step of the dense weights against the gradient, shape ``[P]``, clipped."""
        if norm > self._clip_norm:
            gradient.mul_(self._clip_norm / norm)
        self._pull.add(gradient, self._weights)
        # Adam's noise grows with the rate and falls with the root of the rows (Malladi et al., NeurIPS 2022).
        self._optimizer.step(gradient, math.sqrt(max(self._mean_rows / _RATED_ROWS, 1.0)))

    def _rank(self, ranking: RankingRows) -> Float32s:
        """Each group's scores by its task, shape ``[G, C]``."""
        candidates = ranking.tie_breaks.shape[1]
        task = np.repeat(ranking.task, candidates)
        scores = np.concatenate(
            [
                self._comparable(ranking.rows.at(slice(start, start + _RANKING_CHUNK)))
                for start in range(0, len(ranking.rows), _RANKING_CHUNK)
            ]
        )
        chosen: Float32s = scores[np.arange(len(task)), task].reshape(-1, candidates)
        return chosen

    def stored_rows(self, slot: Int64s) -> Rows:
        """The rows that wait in these slots, or whose labels came with the batch of the latest step."""
        return self._store.rows(slot)

    def logits(self, rows: Rows) -> Float32s:
        """What the weights of now would serve for these rows, shape ``[N, T]``; nothing is counted or learned."""
        return self.readout.served(self.readout.raw(self.readout.conditional(self._residual(rows))).numpy())

    def _comparable(self, rows: Rows) -> Float32s:
        return self.readout.comparable(self._residual(rows), rows.log_q)

    @torch.no_grad()
    def _residual(self, rows: Rows) -> torch.Tensor:
        """The network's residuals, shape ``[N, T]``."""
        embedded, dense = self.table.embed(*self.table.rows(rows)), torch.from_numpy(rows.dense)
        wide, viewers = self._wide.add_up(rows.ids), Viewers.among(rows, self.layout)
        residual: torch.Tensor = self.network(embedded, wide, dense, viewers)
        return residual

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
            "optimizer": {name: value.numpy().reshape(-1) for name, value in self._optimizer.moments.items()},
            "wide": self._wide.save(),
            "balancing": self._balancer.state(),
            **self.readout.save(),
            "delay": {**self._delay.save(), **self._elapsed.save()},
            "quality": quality_arrays,
        }
        small = {group: {name: array.copy() for name, array in arrays.items()} for group, arrays in small.items()}
        table, examples = self.table.capture(), self._store.capture()
        state = {
            "quality": quality_state,
            "detectors": [detector.state() for detector in self.detectors],
            "n_steps": self._n_steps,
            "mean_rows": self._mean_rows,
            "n_skipped": dict(self.n_skipped),
            "watchdog": self.watchdog.state(),
            "n_learned": self.n_learned.tolist(),
            "n_positives": self.n_positives.tolist(),
            "n_late": self.n_late.tolist(),
        }
        return lambda: {**small, "table": table(), "examples": examples()}, state

    def capture_delta(self) -> Callable[[], Groups]:
        """What scoring needs of that which changed since the last capture, cut now: weights, rows, readout."""
        small: Groups = {
            "dense": {name: value.numpy() for name, value in self.network.state_dict().items()},
            "wide": self._wide.save(),
            **self.readout.save(),
        }
        small = {group: {name: array.copy() for name, array in arrays.items()} for group, arrays in small.items()}
        table = self.table.capture_delta()
        return lambda: {**small, "table": table()}

    def restore(self, groups: Groups, state: dict[str, Any]) -> None:
        """The inverse of :meth:`save`, into a fresh trainer of the same settings."""
        load_network(self.network, groups["dense"])
        self._optimizer.moments = {
            name: torch.from_numpy(value.copy()).reshape(() if name == "step" else -1)
            for name, value in groups["optimizer"].items()
        }
        self.table.load(groups["table"])
        self._wide.load(groups["wide"])
        self._balancer.restore(groups["balancing"])
        self.readout.load(groups)
        self._delay.load(groups["delay"])
        self._elapsed.load(groups["delay"])
        self._store.load(groups["examples"])
        self.quality.restore(state["quality"], groups["quality"])
        for detector, saved in zip(self.detectors, state["detectors"], strict=True):
            detector.restore(saved)
        self._n_steps, self._mean_rows = state["n_steps"], state["mean_rows"]
        self.n_skipped = dict.fromkeys(REASONS, 0) | state["n_skipped"]
        self.watchdog.restore(state["watchdog"])
        self.n_learned, self.n_positives = np.array(state["n_learned"]), np.array(state["n_positives"])
        self.n_late = np.array(state["n_late"])


def _precision(name: str) -> torch.dtype:
    """The setting `train.precision`; `auto` is bfloat16 where the processor multiplies it itself."""
    if name == "auto":
        name = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _flatten(parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """Make all parameters views of one vector: one step for all."""
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter.data = flat[start:end].view_as(parameter)
        start = end
    return flat
