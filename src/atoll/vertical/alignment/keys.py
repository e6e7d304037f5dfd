"""Sets of 128-bit keys as arrays: sorted, and what two of them have in common."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["KEY", "Keys", "beginning", "drawn", "meet", "order", "repeated"]

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


def beginning(keys: Keys, bits: int) -> NDArray[np.int64]:
    """The first bits of each key, by which keys are ordered first: int64 [n]."""
    if bits == 0:
        return np.zeros(len(keys), np.int64)
    return (_halves(keys)[0] >> np.uint64(64 - bits)).astype(np.int64)


def repeated(keys: Keys, by_key: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Whether the key at each place of that order is the one before: bool [n]."""
    same = np.zeros(len(keys), bool)
    same[1:] = True
    for half in _halves(keys):
        values = half[by_key]
        same[1:] &= values[1:] == values[:-1]
    return same


def meet(one: Keys, other: Keys) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Where the keys that are in both stand in each, in the order of the keys.

    Raises ValueError where a key is twice in one of them.
    """
    both = np.concatenate([one, other])
    by_key = order(both)
    second = repeated(both, by_key)
    at = np.flatnonzero(second)
    first, last = by_key[at - 1], by_key[at] - len(one)  # equal ones as they stand: first that of `one`
    if (second[1:] & second[:-1]).any() or (first >= len(one)).any() or (last < 0).any():
        raise ValueError("a key is there twice")
    return first.astype(np.int32), last.astype(np.int32)


def _halves(keys: Keys) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    words = np.ascontiguousarray(keys).view("<u8")
    return words[:, 0], words[:, 1]
