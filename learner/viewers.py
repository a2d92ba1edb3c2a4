"""Rows of one viewer: what a request showed and the items sampled against that, or the candidates of a request.

They lie beside each other and differ in the columns of item and context, so the viewer's part of the first layer is
computed once for all of them (:mod:`learner.models._first_layer`). Found by comparing each row with the one before it:
whoever encodes rows need not know.
"""

from typing import NamedTuple, Self

import numpy as np

from contracts.batch import Float32s, Int64s, Layout, Rows
from features.compiled import compiled, compiled_loop
from features.idmap import Integer

_WORTH_IT = 0.8
"""Viewers a row: with more, two products cost as much as one."""


class Viewers(NamedTuple):
    """Which of N rows share a viewer, U of them.

    :param first: shape ``[U]``, the first row of each.
    :param of: shape ``[N]``, each row's viewer.
    """

    first: Int64s
    of: Int64s

    @classmethod
    def among(cls, rows: Rows, layout: Layout) -> Self | None:
        """Those of neighbouring rows; None where too few rows share one."""
        first, of = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        start = 1 + layout.item_fields
        begin, end = sum(layout.slots[:start]), sum(layout.slots[: start + layout.user_fields])
        n_viewers = _number(rows.ids, rows.history, rows.dense, begin, end, layout.user_dense, first, of)
        return None if n_viewers > _WORTH_IT * len(rows) else cls(first[:n_viewers], of)


class Sides(NamedTuple):
    """Columns of the first layer's input, embeddings and then dense ones, none of both kinds: whom they tell of."""

    viewer: tuple[slice, ...]
    item: tuple[slice, ...]

    @classmethod
    def of(cls, layout: Layout, width: int, *, attention: bool) -> Self:
        """The two sides of rows of this layout.

        :param width: floats of an embedding.
        :param attention: histories are pooled by the item, so they are of its side.
        """
        n_item, n_fields = 1 + layout.item_fields, len(layout.fields)
        n_user = n_item + layout.user_fields
        user, item, of_user, context, history = (
            slice(start * width, stop * width)
            for start, stop in (
                (0, 1),
                (1, n_item),
                (n_item, n_user),
                (n_user, n_fields),
                (n_fields, n_fields + len(layout.event_types)),
            )
        )
        user_dense = slice(history.stop, history.stop + layout.user_dense)
        dense = slice(user_dense.stop, history.stop + len(layout.dense))
        if attention:
            return cls((user, of_user, user_dense), (item, context, history, dense))
        return cls((user, of_user, history, user_dense), (item, context, dense))


@compiled
def _alike(
    ids: Int64s, history: Int64s, dense: Float32s, begin: Integer, end: Integer, n_dense: Integer, n: Integer
) -> bool:
    """Whether row n has the viewer of the row before it."""
    if ids[n, 0] != ids[n - 1, 0]:
        return False
    for c in range(begin, end):
        if ids[n, c] != ids[n - 1, c]:
            return False
    for d in range(n_dense):
        if dense[n, d] != dense[n - 1, d]:
            return False
    for y in range(history.shape[1]):
        for h in range(history.shape[2]):
            if history[n, y, h] != history[n - 1, y, h]:
                return False
    return True


@compiled_loop
def _number(
    ids: Int64s,
    history: Int64s,
    dense: Float32s,
    begin: Integer,
    end: Integer,
    n_dense: Integer,
    first: Int64s,
    of: Int64s,
) -> int:
    n_viewers = 0
    for n in range(len(ids)):
        if n == 0 or not _alike(ids, history, dense, begin, end, n_dense, n):
            first[n_viewers] = n
            n_viewers += 1
        of[n] = n_viewers - 1
    return n_viewers
