"""How the loops over events are compiled.

Reference counts are left out (``_nrt=False``): the loops make no arrays, they fill those they are given, and counting a
reference to each array of a state at each call took half of the encoder's time (docs/performance.md). A function that
makes an array (a copy, a sort) must say so, or it would inherit the option from whoever compiles it first.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

# Typed as unknown: `_nrt` is not among the options that numba declares.
njit: Any = numba.njit
_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """Compile a function that fills arrays and makes none; cached on disk."""
    return cast("_Function", njit(cache=True, _nrt=False)(function))


def compiled_loop(function: _Function) -> _Function:
    """The same for a loop that Python calls: it lets go of the interpreter lock."""
    return cast("_Function", njit(cache=True, _nrt=False, nogil=True)(function))


def compiled_with_arrays(function: _Function) -> _Function:
    """The same for a function that makes arrays of its own."""
    return cast("_Function", njit(cache=True, _nrt=True)(function))
