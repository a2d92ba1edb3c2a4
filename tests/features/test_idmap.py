"""The id → row map against a dictionary."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from contracts.memory import map_bytes
from features.idmap import find, insert, new_map, put, rebuild, remove

IDS = st.integers(-(1 << 63), (1 << 63) - 1).filter(bool)


@profile(deadline=None)
@given(
    rounds=st.lists(st.tuples(st.sets(IDS, max_size=12), st.integers(0, 3)), max_size=6),
    strangers=st.lists(IDS, max_size=5),
)
def test_the_map_holds_what_a_dictionary_holds_through_evictions(
    rounds: list[tuple[set[int], int]], strangers: list[int]
) -> None:
    """Each round evicts one in so many of the ids, rebuilds, and inserts new ones as long as there is room."""
    capacity = 16
    keys, rows = new_map(capacity)
    ids = np.zeros(capacity, np.int64)
    reference: dict[int, int] = {}
    for fresh, every in rounds:
        if every:
            for row in range(0, capacity, every):
                ids[row] = 0
            reference = {int(ids[row]): row for row in range(capacity) if ids[row]}
            rebuild(keys, rows, ids)
        free = [row for row in range(capacity) if not ids[row]]
        for key, row in zip(sorted(fresh - set(reference)), free, strict=False):
            ids[row] = key
            reference[key] = row
            insert(keys, rows, key, row)
        for key in [*reference, *fresh, *strangers]:
            assert find(keys, rows, key) == reference.get(key, -1)


@pytest.mark.parametrize("capacity", [1, 2, 3, 1000, 1024, 1025])
def test_a_full_map_is_at_most_half_full(capacity: int) -> None:
    keys, rows = new_map(capacity)
    assert len(keys) == len(rows) >= 2 * capacity
    assert len(keys) & (len(keys) - 1) == 0
    assert keys.nbytes + rows.nbytes == map_bytes(capacity)


def test_ids_that_share_their_low_bits_are_told_apart() -> None:
    ids = np.array([1 << shift for shift in range(60)] + [-(1 << 63)], np.int64)
    keys, rows = new_map(len(ids))
    rebuild(keys, rows, ids)
    assert [find(keys, rows, key) for key in ids] == list(range(len(ids)))


@profile(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(["put", "remove"]), st.integers(0, 15), st.integers(0, 99)), max_size=80))
def test_the_map_holds_what_a_dictionary_holds_through_single_removals(steps: list[tuple[str, int, int]]) -> None:
    """In a map of 32 cells half full, runs of neighbours are long: a removal has something to move."""
    keys, rows = new_map(16)
    reference: dict[int, int] = {}
    for what, number, row in steps:
        key = number + 1
        if what == "put":
            assert put(keys, rows, key, row) == (key not in reference)
            reference[key] = row
        elif key in reference:
            remove(keys, rows, key)
            del reference[key]
        assert {key: find(keys, rows, key) for key in range(1, 17) if find(keys, rows, key) >= 0} == reference
        assert np.count_nonzero(keys) == len(reference)
