"""What is compared: memories that learn nothing, linear models on our own features, and our networks."""

from abc import ABC, abstractmethod
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from river.facto import FMClassifier
from river.linear_model import LogisticRegression
from river.optim import SGD, AdaGrad
from river.optim.initializers import Normal

from contracts.batch import Batch, Float32s, Int64s, Layout, RankingRows, Rows
from contracts.settings import Settings
from features.schema import COVISITS
from learner.ranking import RankingQuality
from learner.trainer import Trainer

_CANDIDATES = 100
_COSINES = [name for name in COVISITS if name.startswith("cosine")]
Metrics = dict[str, float]


class Method(Protocol):
    """Ranks a batch's events, then learns it."""

    name: str

    def step(self, batch: Batch) -> None:
        """Rank, then learn."""

    def metrics(self) -> list[Metrics]:
        """``hr@10``, ``mrr`` and ``sampled_auc`` of each task."""


class Net:
    """Our own network, all at its defaults."""

    def __init__(self, settings: Settings, layout: Layout, architecture: str) -> None:
        self.name = f"Anabranch, {architecture}"
        model = settings.model.model_copy(update={"name": architecture})
        self._trainer = Trainer(settings.model_copy(update={"model": model}), layout)

    def step(self, batch: Batch) -> None:
        """Rank, then learn: the trainer does both."""
        self._trainer.step(batch)

    def metrics(self) -> list[Metrics]:
        """As `evaluate` tells them."""
        return [task["ranking"] for task in self._trainer.quality.report().values()]


class _Scorer(ABC):
    """Ranks by a score of each candidate."""

    name: str

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._quality = [RankingQuality(_CANDIDATES) for _ in layout.tasks]

    def step(self, batch: Batch) -> None:
        """Rank, then learn."""
        if batch.ranking is not None:
            self._rank(batch.ranking)
        self.learn(batch)

    def _rank(self, ranking: RankingRows) -> None:
        for task in np.unique(ranking.task).tolist():
            groups = np.flatnonzero(ranking.task == task)
            rows = (groups[:, None] * _CANDIDATES + np.arange(_CANDIDATES)).reshape(-1)
            scores = self.scores(ranking.rows.at(rows), task).reshape(-1, _CANDIDATES)
            self._quality[task].update(scores, ranking.tie_breaks[groups])

    def metrics(self) -> list[Metrics]:
        """Of each task."""
        return [{name: float(value or 0.0) for name, value in one.summary().items()} for one in self._quality]

    @abstractmethod
    def scores(self, rows: Rows, task: int) -> Float32s:
        """Shape ``[N]``; the greater the better."""

    def learn(self, batch: Batch) -> None:
        """Each label that is known; a memory has nothing to learn, its features have."""
        del batch


class Popularity(_Scorer):
    """Decayed number of events of the item, the slowest half-life."""

    name = "popularity"

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self._columns = _slowest(layout, "item")

    def scores(self, rows: Rows, task: int) -> Float32s:  # noqa: ARG002 - the same for all tasks
        """Over all event types."""
        return np.asarray(rows.dense[:, self._columns].sum(1))


class Memory(_Scorer):
    """What the user did with the item, with its category, and with items that go with it; popularity decides ties.

    The weights are by hand: ten for the item itself, three for its category and for co-visitation.
    """

    name = "memory of recency, category, co-visitation"

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self._weights = np.zeros(len(layout.dense), np.float32)
        self._weights[_slowest(layout, "user x item")] = 10.0
        for field in layout.fields:
            self._weights[_slowest(layout, f"user x {field}")] = 3.0
        cosines = {f"item covisits {name}": 3.0 for name in _COSINES}
        cosines |= {f"{field} covisits {name}": 1.0 for field in layout.fields for name in _COSINES}
        for place, name in enumerate(layout.dense):
            self._weights[place] = cosines.get(name, self._weights[place])
        self._weights[_slowest(layout, "item")] = 0.3

    def scores(self, rows: Rows, task: int) -> Float32s:  # noqa: ARG002 - the same for all tasks
        """A weighted sum of behaviour features."""
        return np.asarray(rows.dense @ self._weights)


class FactorisationMachine(FMClassifier):  # type: ignore[misc]
    """River's, with its arithmetic in linear time; its own takes every pair of features, some milliseconds a row.

    The sum over pairs is half of the squared sum less the sum of squares (Rendle 2010, lemma 3.1), and a step of SGD
    takes all latent weights of a row at once. Nothing but rounding changes.
    """

    def _parts(self, x: dict[str, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values = np.fromiter(x.values(), float, len(x))[:, None]  # [J, 1]
        return values, np.stack([self.latents[name] for name in x])  # [J, k]

    def _calculate_interactions(self, x: dict[str, float]) -> float:
        values, latents = self._parts(x)
        parts = values * latents  # [J, k]
        return 0.5 * float(np.square(parts.sum(0)).sum() - np.square(parts).sum())

    def _update_latents(self, x: dict[str, float], g_loss: float) -> None:
        values, latents = self._parts(x)
        parts = values * latents
        stepped = latents - self.latent_optimizer.learning_rate * g_loss * values * (parts.sum(0) - parts)
        self.latents.update(zip(x, stepped, strict=True))


class River(_Scorer):
    """One model per task over the ids and our behaviour features."""

    def __init__(self, layout: Layout, name: str, models: list[Any]) -> None:
        super().__init__(layout)
        self.name = f"River {version('river')}, {name}"
        self._models = models

    @classmethod
    def logistic_regression(cls, layout: Layout) -> "River":
        """By Adagrad."""
        return cls(layout, "logistic regression", [LogisticRegression(AdaGrad(0.1)) for _ in layout.tasks])

    @classmethod
    def factorisation_machine(cls, layout: Layout, seed: int) -> "River":
        """Four factors by SGD, weights by Adagrad as above; the best of six such settings on the logs' beginnings."""
        models = [
            FactorisationMachine(
                4,
                weight_optimizer=AdaGrad(0.1),
                latent_optimizer=SGD(0.003),
                latent_initializer=Normal(sigma=0.02, seed=seed),
            )
            for _ in layout.tasks
        ]
        return cls(layout, "factorisation machine", models)

    def scores(self, rows: Rows, task: int) -> Float32s:
        """Log-odds would order the same."""
        model = self._models[task]
        return np.array([model.predict_proba_one(_features(rows, n))[True] for n in range(len(rows))], np.float32)

    def learn(self, batch: Batch) -> None:
        """Each label that is known."""
        for n, task in zip(*np.nonzero(batch.known), strict=True):
            self._models[task].learn_one(_features(batch.rows, n), bool(batch.labels[n, task]))


class VowpalWabbit(_Scorer):
    """One model per task, namespaces u, i and b of user, item and behaviour."""

    def __init__(self, layout: Layout, flags: tuple[str, ...]) -> None:
        from vowpalwabbit import Workspace  # an extra: the others run without it

        super().__init__(layout)
        self.name = f"Vowpal Wabbit {version('vowpalwabbit')}, {' '.join(flags)}"
        arguments = ["--loss_function", "logistic", "-b", "22", "--quiet", *flags]
        self._models = [Workspace(arg_list=arguments) for _ in layout.tasks]
        self._is_user = np.array([name.startswith("user") for name in layout.fields])

    def scores(self, rows: Rows, task: int) -> Float32s:
        """Raw scores."""
        predict = self._models[task].predict
        return np.array([predict(self._line(rows, n)) for n in range(len(rows))], np.float32)

    def learn(self, batch: Batch) -> None:
        """Each label that is known."""
        for n, task in zip(*np.nonzero(batch.known), strict=True):
            self._models[task].learn(f"{'1' if batch.labels[n, task] else '-1'} {self._line(batch.rows, n)}")

    def _line(self, rows: Rows, n: int) -> str:
        ids = rows.ids[n]
        user, item = (" ".join(f"{value:x}" for value in ids[of].tolist()) for of in (self._is_user, ~self._is_user))
        return f"|u {user} |i {item} |b {' '.join(f'{k}:{x:.4g}' for k, x in enumerate(rows.dense[n].tolist()) if x)}"


def _slowest(layout: Layout, prefix: str) -> Int64s:
    """The counters of something by every event type, those of the longest half-life."""
    found = [name for name in layout.dense if name.startswith(f"{prefix} ") and name.endswith("s") and ":" in name]
    if not found:
        return np.zeros(0, np.int64)
    longest = max(found, key=lambda name: int(name.rsplit(":", 1)[1][:-1])).rsplit(":", 1)[1]
    return np.array([layout.dense.index(name) for name in found if name.endswith(f":{longest}")])


def _features(rows: Rows, n: int) -> dict[str, float]:
    found = {f"{field}={value:x}": 1.0 for field, value in enumerate(rows.ids[n].tolist())}
    return found | {f"b{place}": value for place, value in enumerate(rows.dense[n].tolist()) if value}
