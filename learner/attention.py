"""Target attention over a user's recent items: what pools them is how alike each is to the item that is scored.

As in the deep interest network (Zhou et al. 2018, KDD), but as scaled dot products of the embeddings themselves
(Vaswani et al. 2017) and with a softmax: no weights of its own, so that untrained embeddings, which are near zero, give
the mean. A row of several heads (single-task networks: one a task) attends in each of them by itself. Compiled, forward
and backward by hand: rows are gathered where they lie.
"""

import numpy as np
from numba import njit

from contracts.batch import Float32s, Int64s
from features.idmap import Integer


@njit(cache=True, nogil=True, fastmath=True)
def attend(weights: Float32s, query: Float32s, rows: Int64s, head: Integer, out: Float32s) -> None:
    """Σₕ aₕ·kₕ with a = softmax(q·k / √head) over the rows that are there (not below 0); zeros where none is.

    :param weights: shape ``[V, W]``.
    :param query: shape ``[W]``, the scored item's row.
    :param rows: shape ``[H]``.
    :param head: floats that attend together, a divisor of W.
    :param out: shape ``[W]``.
    """
    shares = np.empty(len(rows), np.float32)
    out[:] = 0.0
    for start in range(0, len(query), head):
        if not _shares(weights, query, rows, start, head, shares):
            return
        for h in range(len(rows)):
            if rows[h] >= 0:
                for d in range(start, start + head):
                    out[d] += shares[h] * weights[rows[h], d]


@njit(cache=True, nogil=True, fastmath=True)
def attend_back(
    weights: Float32s, item: Integer, rows: Int64s, head: Integer, gradient: Float32s, of_rows: Float32s
) -> bool:
    """The gradient of :func:`attend`: of each row in ``of_rows[:H]``, of the query in ``of_rows[H]``.

    :param item: the row of ``weights`` that is the query.
    :param gradient: of the output, shape ``[W]``.
    :param of_rows: shape ``[H + 1, W]``, filled.
    :returns: whether any row is there; if not, there is no gradient, and nothing was filled.
    """
    query, n = weights[item], len(rows)
    shares, along = np.empty(n, np.float32), np.empty(n, np.float32)
    scale = np.float32(1.0 / np.sqrt(head))
    of_rows[n, :] = 0.0
    for start in range(0, len(query), head):
        if not _shares(weights, query, rows, start, head, shares):
            return False
        mean = np.float32(0.0)
        for h in range(n):
            if rows[h] >= 0:
                along[h] = 0.0
                for d in range(start, start + head):
                    along[h] += gradient[d] * weights[rows[h], d]
                mean += shares[h] * along[h]
        for h in range(n):
            if rows[h] >= 0:
                of_score = scale * shares[h] * (along[h] - mean)
                for d in range(start, start + head):
                    of_rows[h, d] = shares[h] * gradient[d] + of_score * query[d]
                    of_rows[n, d] += of_score * weights[rows[h], d]
    return True


@njit(cache=True, nogil=True, fastmath=True)
def _shares(weights: Float32s, query: Float32s, rows: Int64s, start: Integer, head: Integer, shares: Float32s) -> bool:
    """The softmax over the rows that are there; False where none is."""
    scale = np.float32(1.0 / np.sqrt(head))
    largest = np.float32(-3.0e38)
    found = False
    for h in range(len(rows)):
        if rows[h] >= 0:
            found = True
            score = np.float32(0.0)
            for d in range(start, start + head):
                score += query[d] * weights[rows[h], d]
            shares[h] = score * scale
            largest = max(largest, shares[h])
    if not found:
        return False
    total = np.float32(0.0)
    for h in range(len(rows)):
        if rows[h] >= 0:
            shares[h] = np.exp(shares[h] - largest)
            total += shares[h]
    for h in range(len(rows)):
        shares[h] /= total
    return True
