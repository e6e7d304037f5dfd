"""Sets of 128-bit keys as arrays: sorted, and what two of them have in common."""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

__all__ = ["KEY", "Keys", "drawn", "meet", "order", "starts"]

KEY = 16
"""Bytes of a key: the first ones of a blinded point. Two sets of n and m points of which none is in both have equal
keys with a probability below n m / 2^127."""

Keys = NDArray[np.uint8]  # [n, 16]


def drawn(count: int) -> Keys:
    """Random keys, which look like those of points that nobody else has."""
    return np.frombuffer(secrets.token_bytes(KEY * count), np.uint8).reshape(-1, KEY)


def order(keys: Keys) -> NDArray[np.int64]:
    """The rows in the order of their keys, equal ones as they stand: int64 [n]."""
    high, low = _halves(keys)
    return np.lexsort((low, high)).astype(np.int64, copy=False)


def starts(keys: Keys, by_key: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where in that order another key begins."""
    high, low = (half[by_key] for half in _halves(keys))
    new = np.ones(len(keys), bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return np.flatnonzero(new)


def meet(one: Keys, other: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the keys that are in both stand in each, in the order of the keys.

    Raises ValueError where a key is twice in one of them.
    """
    both = np.concatenate([one, other])
    by_key = order(both)
    begin = np.append(starts(both, by_key), len(both))
    size = np.diff(begin)
    pairs = begin[:-1][size == 2]
    first, second = (
        by_key[pairs],
        by_key[pairs + 1] - len(one),
    )  # equal ones as they stand: first that of `one`
    if (size > 2).any() or (first >= len(one)).any() or (second < 0).any():
        raise ValueError("a key is there twice")
    return first, second


def _halves(keys: Keys) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    words = np.ascontiguousarray(keys).view("<u8")
    return words[:, 0], words[:, 1]
