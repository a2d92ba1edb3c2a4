"""What rows share is computed once, and comes out as if it were not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from contracts.components import names
from learner.models._base import Network
from learner.viewers import Sides, Viewers

GROUPS = (1, 4, 1, 1, 3, 6)
FIELDS = [
    {"source": "item.category"},
    {"source": "user.country"},
    {"source": "context.position"},
    {"source": "user.age", "kind": "numeric"},
    {"source": "context.hour", "kind": "numeric"},
]


@pytest.fixture
def layout(make_settings, layout_of):
    return layout_of(make_settings(fields=FIELDS))


@pytest.fixture
def rows(layout, make_rows):
    """Groups of rows that differ in item and context alone."""
    made = make_rows(layout, sum(GROUPS), np.random.default_rng(0))
    first = np.repeat(np.cumsum([0, *GROUPS[:-1]]), GROUPS)
    of_user = [layout.fields.index(name) for name in ("user_id", "user.country")]
    made.ids[:, of_user] = made.ids[first][:, of_user]
    made.history[...] = made.history[first]
    made.dense[:, : layout.user_dense] = made.dense[first, : layout.user_dense]
    return made


def test_neighbours_share_a_viewer_where_all_that_is_the_users_is_the_same(layout, rows) -> None:
    found = Viewers.among(rows, layout)
    assert found is not None
    assert found.of.tolist() == np.repeat(np.arange(len(GROUPS)), GROUPS).tolist()
    assert found.first.tolist() == np.cumsum([0, *GROUPS[:-1]]).tolist()


@pytest.mark.parametrize("column", ["user_id", "user.country", "history", "user counters", "user.age"])
def test_one_difference_in_the_users_columns_makes_another_viewer(layout, rows, column) -> None:
    changed = replace(rows, ids=rows.ids.copy(), history=rows.history.copy(), dense=rows.dense.copy())
    if column == "history":
        changed.history[3, -1, -1] += 1
    elif column in layout.fields:
        changed.ids[3, layout.fields.index(column)] += 1
    else:
        changed.dense[3, 0 if column == "user counters" else layout.user_dense - 1] += 1
    found, before = Viewers.among(changed, layout), Viewers.among(rows, layout)
    assert found is not None
    assert before is not None
    assert len(found.first) == len(before.first) + 2  # the row is one of its own, and the one behind it begins anew


def test_where_hardly_any_row_shares_one_there_are_none(layout, make_rows) -> None:
    assert Viewers.among(make_rows(layout, 20, np.random.default_rng(0)), layout) is None


@pytest.mark.parametrize("attention", [False, True])
def test_every_column_is_of_one_side(layout, attention) -> None:
    sides = Sides.of(layout, 4, attention=attention)
    columns = sorted(column for side in sides for part in side for column in range(part.start, part.stop))
    assert columns == list(range(4 * (len(layout.fields) + len(layout.event_types)) + len(layout.dense)))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", names("learner.models"))
def test_logits_and_gradients_are_those_of_rows_that_share_nothing(
    make_settings, layout, rows, name, precision
) -> None:
    network = Network(name, layout, make_settings().model, 0, precision)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    # An embedding for each id, so that equal ids have equal ones; a viewer's gradient is its rows' together.
    n_fields, width = len(layout.fields), network.embedding_width
    table = torch.randn(5000, width, generator=generator).requires_grad_()
    places = np.concatenate([rows.ids, rows.history[:, :, 0]], 1) % len(table)
    dense, found = torch.from_numpy(rows.dense), []
    for viewers in (None, Viewers.among(rows, layout)):
        logits = network(table[torch.from_numpy(places)], torch.zeros(len(dense), network.n_wide), dense, viewers)
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
        found.append((logits, *torch.autograd.grad((logits * weights).sum(), [table, *network.parameters()])))
    assert places.shape[1] == n_fields + len(layout.event_types)
    off = 1e-5 if precision == torch.float32 else 0.1
    for one, other in zip(*found, strict=True):
        assert other.norm() > 0
        assert (one - other).norm() <= off * other.norm()
