"""Requests and replies of the scoring worker (DESIGN §5)."""

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.events import Attributes, Id


class Candidate(msgspec.Struct, forbid_unknown_fields=True):
    """An item to score; attributes given here win over those the stream told."""

    item_id: Id
    item: Attributes = {}


class ScoreRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One user, many items.

    ``items`` are ids, or objects with attributes. ``ts_ms`` is the moment to score for; now where it is not given.
    """

    user_id: Id
    items: list[Id | Candidate]
    user: Attributes = {}
    context: Attributes = {}
    ts_ms: Annotated[int, Meta(ge=0, le=1 << 53)] | None = None


class RankRequest(ScoreRequest, kw_only=True):
    """The same, to be ordered by Σ weight × probability; a weight may be negative.

    ``top`` cuts the reply to the best so many.
    """

    weights: dict[str, float]
    top: Annotated[int, Meta(ge=1)] | None = None


class Reply(msgspec.Struct, kw_only=True):
    """What every reply carries.

    ``request_id`` is to be echoed in the events that follow. ``model_version`` is the snapshot's number,
    ``model_age_s`` the age of the newest event in it. ``fallback``: ``personalised`` (the user is known), ``content``
    (not the user, but at least one item), ``popular`` (neither).
    """

    request_id: str
    model_version: int
    model_age_s: float
    fallback: str


class ScoredItem(msgspec.Struct):
    """One item's probabilities by task; ``known``: the stream has had events of it."""

    item_id: Id
    probabilities: dict[str, float]
    known: bool


class ScoreReply(Reply, kw_only=True):
    """Items in the order of the request."""

    items: list[ScoredItem]


class RankedItem(msgspec.Struct):
    """One item with its value, Σ weight × probability."""

    item_id: Id
    value: float
    probabilities: dict[str, float]
    known: bool


class RankReply(Reply, kw_only=True):
    """Items, the most valuable first."""

    items: list[RankedItem]


class ModelReply(msgspec.Struct, kw_only=True):
    """What is being served; ``delta``: deltas behind the version that are in it."""

    model_version: int
    delta: int
    model_age_s: float
    created_ms: int
    event_time_ms: int
    n_events: int
    settings_fingerprint: str
    tasks: list[str]
    fields: list[str]
    offsets: dict[str, dict[str, int]]


class ErrorReply(msgspec.Struct):
    """What went wrong: rule, value, way out."""

    error: str
