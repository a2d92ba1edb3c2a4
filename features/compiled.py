"""How the loops over events are compiled.

Reference counts are left out (``_nrt=False``): the loops make no arrays, they fill those they are given, and counting a
reference to each array of a state at each call took half of the encoder's time (docs/performance.md). A function that
makes an array (a copy, a sort) must say so, or it would inherit the option from whoever compiles it first.

numba keeps compiled code beside the source, and looks only at the file of the function itself: it would go on with old
code of what that function calls in another file. So what is older than any compiled source here is thrown away first.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

# Typed as unknown: `_nrt` is not among the options that numba declares.
njit: Any = numba.njit
_Function = TypeVar("_Function", bound=Callable[..., object])
_HERE = Path(__file__).parent


def compiled(function: _Function) -> _Function:
    """Compile a function that fills arrays and makes none; cached on disk."""
    return _compile(function, _nrt=False)


def compiled_loop(function: _Function) -> _Function:
    """The same for a loop that Python calls: it lets go of the interpreter lock."""
    return _compile(function, _nrt=False, nogil=True)


def compiled_with_arrays(function: _Function) -> _Function:
    """The same for a function that makes arrays of its own."""
    return _compile(function, _nrt=True)


def _compile(function: _Function, **options: bool) -> _Function:
    _forget_stale_code(Path(function.__code__.co_filename).parent)
    return cast("_Function", njit(cache=True, **options)(function))


@cache
def _forget_stale_code(folder: Path) -> None:
    """Throw away compiled code in a package that is older than a compiled source of it, or of this package."""
    python = [path for place in {folder, _HERE} for path in place.glob("*.py")]
    sources = [path for path in python if b"compiled" in (text := path.read_bytes()) or b"njit" in text]
    newest_seconds = max((path.stat().st_mtime for path in sources), default=0.0)
    for index in folder.glob("__pycache__/*.nbi"):
        with suppress(OSError):  # another process was first, or the installation is not ours to write
            if index.stat().st_mtime < newest_seconds:
                index.unlink()
