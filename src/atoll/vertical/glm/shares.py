"""Fixed point, and numbers as the sum of two that mean nothing alone.

A number v is the integer round(v 2^20), and that the sum of two shares modulo 2^64, each uniform. Read as signed
numbers two shares of v sum to v over the integers as well, but with probability |v| 2^20 / 2^64: 2^-41 for |v| < 8.
Products of shares are therefore summed and cut back to 20 bits over the integers, where that cannot go wrong but by 1
in the last place, before they are reduced. (Cut within the ring, a product with 40 bits behind the point would be wrong
altogether with probability 2^-20.)
"""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.vertical.side import FloatArray

__all__ = ["POINT", "Big", "Share", "cut", "fixed", "floats", "rational", "ring", "split", "uniform"]

POINT = 20
"""Bits behind the point."""

Share = NDArray[np.int64]
Big = NDArray[Any]
"""Integers of any size, as objects."""


def fixed(values: FloatArray) -> Share:
    """Integers, 2^20 times the numbers."""
    return np.round(values * 2.0**POINT).astype(np.int64)


def floats(values: Share) -> FloatArray:
    """The inverse."""
    return np.asarray(values / 2.0**POINT)


def uniform(shape: tuple[int, ...]) -> Share:
    """Uniform over all of int64, from the operating system."""
    count = int(np.prod(shape))
    return np.frombuffer(os.urandom(8 * count), dtype=np.int64).reshape(shape).copy()


def split(values: Share) -> tuple[Share, Share]:
    """Two shares, each of them uniform."""
    first = uniform(values.shape)
    return first, values - first


def ring(values: Big) -> Share:
    """Integers modulo 2^64, as int64."""
    low = (values & ((1 << 64) - 1)).astype(np.uint64)
    return np.asarray(low.view(np.int64))


def rational(value: float) -> Fraction:
    """A setting as all parties reckon with it: to 2^-40."""
    return Fraction(round(value * 2**40), 2**40)


def cut(values: Big | Share, factor: Fraction) -> Big:
    """floor(values * factor), over the integers; of two shares so cut the sum is too small by 1 at most."""
    return np.asarray(values.astype(object) * factor.numerator // factor.denominator)
