"""Asking for memory ahead: an instruction, and no more than that."""

import numba
import numpy as np

from features.prefetch import prefetch


@numba.njit
def total(values):
    found = 0.0
    for n in range(len(values)):
        prefetch(values, 8 * (n + 8))  # behind the end, too
        found += values[n]
    return found


def test_asking_ahead_is_an_instruction_and_changes_nothing() -> None:
    values = np.arange(1000.0)
    assert total(values) == 499_500
    assert (values == np.arange(1000.0)).all()
    [code] = total.inspect_llvm().values()
    assert "llvm.prefetch" in code
