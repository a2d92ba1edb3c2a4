"""The batch: what the streamer hands to the learner, as columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.records import Offsets

Int64s = NDArray[np.int64]
Float32s = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Layout:
    """The names behind the columns of :class:`Rows`, fixed for the life of a model.

    :param tasks: task names, in the order of the label columns.
    :param fields: id fields, in the order of ``ids``; the first two are ``user_id`` and ``item_id``.
    :param slots: columns of ``ids`` that each field takes; more than one for a field of several values.
    :param dense: names of the dense columns.
    :param event_types: event types in the order of ``history``'s second axis.
    :param history_length: items kept per user and event type.
    :param item_fields: fields of the item, from ``item_id`` on.
    :param user_fields: fields of the user behind them. With ``user_id``, the histories and the first ``user_dense``
        dense columns they are the same for all items that a user is shown, or compared by, at once.
    """

    tasks: tuple[str, ...]
    fields: tuple[str, ...]
    slots: tuple[int, ...]
    dense: tuple[str, ...]
    event_types: tuple[str, ...]
    history_length: int
    item_fields: int = 1
    user_fields: int = 0
    user_dense: int = 0

    @property
    def n_ids(self) -> int:
        """Columns of ``ids``."""
        return sum(self.slots)


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded features of N examples.

    :param ids: shape ``[N, C]``, 64-bit hashes, the field's name hashed in; -1: a slot of its field that holds nothing.
    :param history: shape ``[N, Y, H]``, item ids of the user's recent events by type, newest first; 0: none.
    :param dense: shape ``[N, D]``, behaviour and numeric features, roughly of unit scale.
    :param log_q: shape ``[N]``, log of (probability that a negative sample is this item × number of items known).
    """

    ids: Int64s
    history: Int64s
    dense: Float32s
    log_q: Float32s

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, places: Int64s | slice) -> "Rows":
        """The rows at these places."""
        return Rows(self.ids[places], self.history[places], self.dense[places], self.log_q[places])

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of all parts, in order; where only one has any, that one itself."""
        parts = [part for part in parts if len(part)] or parts[:1]
        if len(parts) == 1:
            return cls(*(getattr(parts[0], one.name) for one in fields(cls)))
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))


@dataclass(frozen=True, slots=True)
class RankingRows:
    """Items to be ranked against each other before anything of this batch is learned.

    :param rows: ``G × C`` rows; the first of each group of C is the item of the event.
    :param task: shape ``[G]``, the task whose score ranks the group.
    :param tie_breaks: shape ``[G, C]``, random numbers that order equal scores.
    """

    rows: Rows
    task: Int64s
    tie_breaks: Float32s


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's worth of the stream (B new rows, M matured ones, T tasks).

    :param rows: features of the exposures and sampled items of this batch, in stream order.
    :param slot: shape ``[B]``: where the learner keeps the row until its labels mature; -1: nothing will mature.
    :param sampled: shape ``[B]``, true for a sampled item that nobody was shown.
    :param time_ms: shape ``[B]``, event time.
    :param list_id: shape ``[B]``, hash of the request the row was shown in; 0 where the event names none.
    :param labels: shape ``[B, T]``, the labels as they stand now.
    :param known: shape ``[B, T]``: labels that are final, to be measured.
    :param learn: shape ``[B, T]``: labels to learn from now; one that is not final yet is a 0 that a 1 may follow.
    :param truth: shape ``[B, T]``, the simulator's probabilities; NaN where unknown; None on a stream without.
    :param matured_slot: shape ``[M]``: rows of this or earlier batches of which something became known.
    :param matured_labels: shape ``[M, T]``.
    :param matured_known: shape ``[M, T]``: the tasks whose windows closed, to be measured.
    :param matured_learn: shape ``[M, T]``: labels to learn from now.
    :param matured_late: shape ``[M, T]``: those of them whose example was learned as a negative: one positive more.
    :param ranking: groups to rank, when evaluation asks for them.
    :param new_item_events: shape ``[T]``: events of never seen items, neither ranked nor trained on as positives.
    :param n_events: events that went into the batch.
    :param watermark_ms: event time that the stream has reached.
    :param first_event_ms: event time of the batch's first event.
    """

    rows: Rows
    slot: Int64s
    sampled: Bools
    time_ms: Int64s
    list_id: Int64s
    labels: Float32s
    known: Bools
    learn: Bools
    truth: Float32s | None
    matured_slot: Int64s
    matured_labels: Float32s
    matured_known: Bools
    matured_learn: Bools
    matured_late: Bools
    ranking: RankingRows | None
    new_item_events: Int64s
    n_events: int
    watermark_ms: int
    first_event_ms: int


def nothing_to_release() -> None:
    """What there is to release where nobody waits for it."""


INGEST_GROUPS = ("profiles", "join", "seen", "open_batch")
"""The groups of arrays in a snapshot that are an ingest's; the others are the learner's."""


@dataclass(frozen=True, slots=True)
class Barrier:
    """The cut that travels with the data (DESIGN §4): everything before it is in the batches before it.

    A delta's cut has in its groups only what scoring needs of that which changed since the cut before it, of either
    kind, and no state.

    :param offsets: the next offset of every partition at the cut.
    :param groups: the ingest side's arrays, by group and name, which nobody changes until ``release`` is called.
    :param state: the ingest side's small state, plain msgpack types.
    :param event_time_ms: newest event time before the cut.
    :param n_events: events taken since the first one ever.
    :param release: to be called, from any thread, once the arrays are not needed any more: until then the ingest makes
        no further barrier.
    """

    offsets: Offsets
    groups: dict[str, dict[str, NDArray[Any]]]
    state: dict[str, Any]
    event_time_ms: int
    n_events: int
    release: Callable[[], None] = nothing_to_release
    is_delta: bool = False
