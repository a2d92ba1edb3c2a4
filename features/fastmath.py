"""Logarithm and power of two for compiled loops: a few times faster than the C library's, as exact as float32 needs.

Both split the number into exponent and mantissa by its bits and take a short polynomial of the rest. Error of
:func:`log` and :func:`log1p` below 1e-6, relative where the logarithm is above 1, relative error of :func:`exp2` below
1e-5 (tests/features/test_fastmath.py).
"""

import numpy as np
from numba import njit

from features.idmap import Real

_LN2 = np.float32(0.6931471805599453)
_SQRT_HALF_BITS = 0x3F3504F3
_MANTISSA = 0x007FFFFF
_LEAST_EXPONENT = np.float32(-126.0)


@njit(cache=True, inline="always")
def log(x: Real) -> np.float32:
    """log(x) for a normal x > 0; ln m = 2·artanh((m − 1) / (m + 1)) for a mantissa m within √½ to √2."""
    bits = np.float32(x).view(np.int32)
    shifted = np.int32(bits - _SQRT_HALF_BITS)
    mantissa = np.int32((shifted & _MANTISSA) + _SQRT_HALF_BITS).view(np.float32)
    s = (mantissa - np.float32(1.0)) / (mantissa + np.float32(1.0))
    s2 = s * s
    series = s * (np.float32(2.0) + s2 * (np.float32(2 / 3) + s2 * (np.float32(2 / 5) + s2 * np.float32(2 / 7))))
    return np.float32(np.float32(shifted >> 23) * _LN2 + series)


@njit(cache=True, inline="always")
def log1p(x: Real) -> np.float32:
    """log(1 + x) for a finite x ≥ 0."""
    return log(np.float32(1.0) + np.float32(x))


@njit(cache=True, inline="always")
def exp2(x: Real) -> np.float32:
    """2 to the power x for x ≤ 0; 0 below 2⁻¹²⁶."""
    x32 = np.float32(x)
    if x32 < _LEAST_EXPONENT:
        return np.float32(0.0)
    whole = np.int32(x32 - np.float32(0.5))  # rounds to the nearest: x is not positive
    f = x32 - np.float32(whole)
    series = np.float32(0.0096181291) + f * np.float32(0.0013333558)
    series = np.float32(0.2402265070) + f * (np.float32(0.0555041087) + f * series)
    series = np.float32(1.0) + f * (_LN2 + f * series)
    return np.float32(series * np.int32((whole + 127) << 23).view(np.float32))
