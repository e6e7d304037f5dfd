"""Numbers by address for many clients at once: a hash of (seed, purpose, round, client, nth), and no generators.

`seeds.address` starts a stream for a seed, a purpose and a round; the client and the count within it are hashed into
that. So any clients, asked in any order and in any number of calls, get the numbers that all of them would get, and a
million of them cost a few passes over an array. The hash is SplitMix64's (Steele, Lea and Flood, OOPSLA 2014), applied
twice.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Ints", "exponential", "normal", "start", "uniform"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_STEP, _OTHER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_BITS = np.uint64(12)


@lru_cache(maxsize=256)
def start(seed: int, purpose: str, number: int = 0) -> int:
    """Where the stream of a seed, a purpose and a round starts."""
    from atoll import seeds  # imports torch, which reading a text of devices does not need

    return seeds.address(seed, purpose, number)


def uniform(stream: int, clients: Ints, nth: int | Ints = 0) -> Floats:
    """Uniform numbers in the open interval (0, 1), 52 random bits each, one for each client (and `nth`, broadcast)."""
    found = clients.astype(np.uint64)
    found *= _STEP
    found += np.uint64(stream)
    found = _mixed(found) + _OTHER * (np.atleast_1d(np.asarray(nth)).astype(np.uint64) + np.uint64(1))
    bits = _mixed(found)
    bits >>= _BITS
    numbers = bits.astype(np.float64)
    numbers += 0.5
    numbers *= 2.0**-52
    return numbers


def normal(stream: int, clients: Ints, nth: int = 0) -> Floats:
    """Standard normal numbers (Box and Muller), one for each client."""
    radius, angle = uniform(stream, clients, np.array([[2 * nth], [2 * nth + 1]]))
    return np.asarray(np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * np.pi * angle))


def exponential(stream: int, clients: Ints, nth: int | Ints = 0) -> Floats:
    """Exponential numbers of mean 1, all above 0, one for each client (and `nth`, broadcast)."""
    return -np.log(uniform(stream, clients, nth))


def _mixed(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64, in place. Products wrap."""
    h ^= h >> np.uint64(30)
    h *= _FIRST
    h ^= h >> np.uint64(27)
    h *= _SECOND
    h ^= h >> np.uint64(31)
    return h
