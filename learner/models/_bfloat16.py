"""bfloat16 in compiled code, which numba does not know: its bits, as 16-bit integers.

Compiled loops over float32 arrays and over such bits are the same source: :func:`widen` and :func:`narrow` do nothing
to a float32.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor

Bits = NDArray[np.float32] | NDArray[np.uint16]


def bits(tensor: Tensor) -> Bits:
    """A view of a float32 or bfloat16 tensor for compiled code."""
    array: Bits = tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return array


def widen(value: Any) -> Any:
    """An element of :func:`bits` as float32; in compiled code only."""
    raise NotImplementedError


def narrow(value: Any, like: Any) -> Any:
    """A float32 as an element of an array of :func:`bits`, rounded to the nearest, to even; in compiled code only.

    NaN stays NaN but for payloads that the rounding carries out of the top bits, which no operation makes.
    """
    raise NotImplementedError


@overload(widen, inline="always", strict=False)
def _widen(value: Any) -> Callable[[Any], Any]:
    if value == types.float32:
        return lambda value: value
    return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)


@overload(narrow, inline="always", strict=False)
def _narrow(value: Any, like: Any) -> Callable[[Any, Any], Any]:  # noqa: ARG001
    if like.dtype == types.float32:
        return lambda value, like: value  # noqa: ARG005

    def rounded(value: Any, like: Any) -> Any:  # noqa: ARG001
        whole = np.float32(value).view(np.uint32)
        half = np.uint32(0x7FFF) + ((whole >> np.uint32(16)) & np.uint32(1))
        return np.uint16((whole + half) >> np.uint32(16))

    return rounded
