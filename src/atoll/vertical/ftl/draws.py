"""Random numbers that nobody else can foresee: from the operating system, never from a seed."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

from atoll.vertical.side import FloatArray

__all__ = ["normal", "spread"]


def _uniform(count: int) -> FloatArray:
    """Of 53 bits, at least 0 and below 1."""
    raw = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    return (raw >> np.uint64(11)).astype(np.float64) / 2.0**53


def spread(count: int, bound: float) -> FloatArray:
    """Evenly spread over -bound to bound, [count]."""
    return _uniform(count) * (2 * bound) - bound


def normal(shape: Sequence[int]) -> FloatArray:
    """Normal ones of deviation 1.   Box and Muller 1958"""
    count = math.prod(shape)
    one, two = _uniform(count) + 2.0**-54, _uniform(count)
    found: FloatArray = (np.sqrt(-2 * np.log(one)) * np.cos(2 * math.pi * two)).reshape(shape)
    return found
