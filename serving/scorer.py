"""The scorer: one snapshot in memory, the learner's own encoder and network, nothing that changes."""

import copy
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.batch import Bools, Float32s, Int64s
from contracts.events import Attributes, Id
from contracts.manifest import Manifest
from contracts.scoring import Candidate, RankedItem, RankReply, RankRequest, ScoredItem, ScoreReply, ScoreRequest
from contracts.settings import Settings
from features.encoder import Encoder
from features.hashing import FieldHasher
from features.profiles import copy_profiles, load_profiles, new_profiles
from features.schema import ITEM_FIELD, USER_FIELD, AttributeReader, FeatureSchema
from learner.models._frozen import FrozenModel
from learner.snapshot import Snapshot

GROUPS = ("profiles", "dense", "table", "wide", "base_rates", "calibration")
"""The parts of a snapshot that scoring needs."""


class ScoringError(ValueError):
    """A request that breaks a rule; the message names rule, value and way out."""


class Scorer:
    """Scores with one model version; safe to share between threads, since it is only read.

    :param max_items: items a request may name.
    """

    def __init__(self, settings: Settings, snapshot: Snapshot, max_items: int) -> None:
        self.manifest: Manifest = snapshot.manifest
        self._schema = FeatureSchema.of(settings)
        profiles = new_profiles(settings.features, self._schema, settings.negatives.uniform_share, settings.seed)
        load_profiles(profiles, snapshot.groups["profiles"])
        self._encoder = Encoder(self._schema, profiles)
        self._model = FrozenModel(settings, self._schema.layout, snapshot.groups)
        self._tasks = self._schema.layout.tasks
        self._users, self._items = FieldHasher(USER_FIELD), FieldHasher(ITEM_FIELD)
        self._max_items = max_items

    def moved_on(self, deltas: Sequence[Snapshot]) -> Self:
        """The scorer with these deltas behind its own, in order; this one stays as it is and goes on scoring.

        :raises Exception: a delta is not one of this model.
        """
        made, profiles = copy.copy(self), copy_profiles(self._encoder.profiles)
        made._encoder = Encoder(self._schema, profiles)
        for delta in deltas:
            load_profiles(profiles, delta.groups["profiles"])
            made._model = made._model.moved_on(delta.groups)
            made.manifest = delta.manifest
        return made

    def warmed(self) -> Self:
        """Score once, so that the first request does not pay for compilation and cold caches."""
        self._probabilities(ScoreRequest(user_id="warm-up", items=["warm-up"] * min(self._max_items, 100)), 0)
        return self

    def score(self, request: ScoreRequest, request_id: str, now_ms: int) -> ScoreReply:
        """A probability per task for every item, in the request's order.

        :raises ScoringError: too many items.
        """
        probabilities, known, fallback = self._probabilities(request, now_ms)
        items = [
            ScoredItem(item_id(item), dict(zip(self._tasks, row, strict=True)), seen)
            for item, row, seen in zip(request.items, probabilities.tolist(), known.tolist(), strict=True)
        ]
        return ScoreReply(
            request_id=request_id,
            model_version=self.manifest.version,
            model_age_s=self.age_seconds(now_ms),
            fallback=fallback,
            items=items,
        )

    def rank(self, request: RankRequest, request_id: str, now_ms: int) -> RankReply:
        """The items by Σ weight × probability, ties in the request's order.

        :raises ScoringError: too many items, an unknown task, a weight that is not finite, no weight at all.
        """
        weights = self._weights(request.weights)
        probabilities, known, fallback = self._probabilities(request, now_ms)
        values = probabilities @ weights
        order = np.argsort(-values, kind="stable")[: request.top]
        rows, seen, value = probabilities[order].tolist(), known[order].tolist(), values[order].tolist()
        items = [
            RankedItem(
                item_id(request.items[index]),
                value[place],
                dict(zip(self._tasks, rows[place], strict=True)),
                seen[place],
            )
            for place, index in enumerate(order.tolist())
        ]
        return RankReply(
            request_id=request_id,
            model_version=self.manifest.version,
            model_age_s=self.age_seconds(now_ms),
            fallback=fallback,
            items=items,
        )

    def age_seconds(self, now_ms: int) -> float:
        """Age of the newest event in the model, seconds."""
        return (now_ms - self.manifest.event_time_ms) / 1000

    def _weights(self, weights: dict[str, float]) -> NDArray[np.float64]:
        unknown = sorted(set(weights) - set(self._tasks))
        if unknown or not weights:
            found = ", ".join(f"`{name}`" for name in unknown) or "none"
            raise ScoringError(
                f"`weights` names tasks of the model: found {found}, expected some of {', '.join(self._tasks)}."
            )
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ScoringError(f"A weight is a finite number; found {weight} for `{name}`.")
        ordered = np.array([weights.get(task, 0.0) for task in self._tasks], np.float64)
        if not math.isfinite(sum(abs(weight) for weight in weights.values())):
            raise ScoringError("The weights together must stay within a float's range; only their ratios matter.")
        return ordered

    def _probabilities(self, request: ScoreRequest, now_ms: int) -> tuple[Float32s, Bools, str]:
        if len(request.items) > self._max_items:
            raise ScoringError(
                f"A request names at most {self._max_items} items; found {len(request.items)}. "
                "Split it, or raise serve.max_items."
            )
        rows, known_user, known = self._encoder.encode_candidates(
            self._users(request.user_id),
            self._items.column([item_id(item) for item in request.items]),
            now_ms if request.ts_ms is None else request.ts_ms,
            *_attributes(self._schema.user, request.user),
            *_attributes(self._schema.context, request.context),
            *self._schema.item.columns([item.item if isinstance(item, Candidate) else {} for item in request.items]),
        )
        fallback = "personalised" if known_user else "content" if known.any() else "popular"
        return self._model.probabilities(rows), known, fallback


def item_id(item: Id | Candidate) -> Id:
    """The id of an item of a request, however it was given."""
    return item.item_id if isinstance(item, Candidate) else item


def _attributes(reader: AttributeReader, attributes: Attributes) -> tuple[Int64s, Float32s]:
    hashes, numbers = reader(attributes)
    return np.array(hashes, np.int64), np.array(numbers, np.float32)


def use_one_thread() -> None:
    """A request is small: more threads a request only make the others wait."""
    torch.set_num_threads(1)
