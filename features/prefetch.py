"""Asks the processor for memory that is needed soon, so that look-ups wait side by side instead of one after the other.

The profiles are tables of tens of megabytes, read at places that hashes decide: nearly each look-up would wait for main
memory, and an event makes dozens.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from features.idmap import Integer

_declared: Any = cgutils.get_or_insert_function  # untyped


def prefetch(array: NDArray[Any], byte: Integer) -> None:
    """Ask for the cache line that holds this byte of a C-contiguous array; changes nothing. In compiled code only."""
    raise NotImplementedError


def _typed(_context: Any, array: Any, byte: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.gep(builder.bitcast(data, pointer), [arguments[1]])
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = _declared(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [place, number(0), number(3), number(1)])  # for reading, to stay, of data
        return context.get_dummy_value()

    return types.void(array, byte), code


_ask: Any = intrinsic(_typed)


@overload(prefetch, inline="always", strict=False)
def _prefetch(array: Any, byte: Any) -> Any:  # noqa: ARG001
    return lambda array, byte: _ask(array, np.int64(byte))
