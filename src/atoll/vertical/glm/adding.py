"""Matrices times vectors under a cipher that adds, and its keys.

A matrix of small integers x from 0 is multiplied by additions alone: x is cut into digits of 8 bits. With many rows and
few columns, all multiples of each ciphertext by a digit are laid out in a table, of which a row picks one for each of
its digits. With few rows and many columns, ciphertexts are first collected by the digit that they are to be multiplied
with (the buckets of Pippenger's method). Both take about one addition for each digit of the matrix, where powers would
take some forty.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atoll import he
from atoll.he import AdditiveHE, Octets, SecretHE, Vector

__all__ = ["keygen", "load", "packed", "times"]

_DIGIT = 8
_SIZE = 1 << _DIGIT
_OPEN = "none-512"
"""Without a cipher numbers have as much room as sums of products of shares take."""


def keygen(crypto: str) -> SecretHE:
    """A new key of a cipher that adds."""
    return he.keygen(_OPEN if crypto == "none" else crypto)


def load(crypto: str, key: Octets) -> AdditiveHE:
    """What another party has sent as its public key.  Raises CodecError."""
    return he.load(_OPEN if crypto == "none" else crypto, key)


def packed(rows: Octets, per: int) -> Octets:
    """Numbers [n, size] as `AdditiveHE.pack` puts them side by side, [ceil(n / per), per * size]."""
    full = np.zeros((-(-len(rows) // per) * per, rows.shape[1]), np.uint8)
    full[: len(rows)] = rows
    return full.reshape(-1, per * rows.shape[1])


def times(public: AdditiveHE, x: NDArray[np.int64], c: Vector, bits: int) -> Vector:
    """A matrix [n, d] of whole numbers from 0 with so many bits times encrypted numbers [d], encrypted, [n]."""
    places = -(-bits // _DIGIT)
    digits = (x[:, :, None] >> (_DIGIT * np.arange(places))) & (_SIZE - 1)
    return _tabled(public, digits, c) if len(x) > x.shape[1] else _collected(public, digits, c)


def _tabled(public: AdditiveHE, digits: NDArray[np.int64], c: Vector) -> Vector:
    rows, columns, places = digits.shape
    step = np.concatenate([public.mul_plain(c, 1 << (_DIGIT * place)) for place in range(places)])
    multiples = [step]
    while len(multiples) < _SIZE - 1:
        multiples.append(public.add(multiples[-1], step))
    table = np.concatenate(multiples)  # of digit - 1, place, column
    where = (digits - 1) * len(step) + columns * np.arange(places) + np.arange(columns)[:, None]
    there = digits > 0
    bins = np.broadcast_to(np.arange(rows)[:, None, None], digits.shape)
    return public.sum_by_bins(table, where[there], bins[there], rows)


def _collected(public: AdditiveHE, digits: NDArray[np.int64], c: Vector) -> Vector:
    rows, columns, places = digits.shape
    bins = (digits * places + np.arange(places)) * rows + np.arange(rows)[:, None, None]
    which = np.broadcast_to(np.arange(columns)[:, None], digits.shape)
    there = digits > 0
    sums = public.sum_by_bins(c, which[there], bins[there], _SIZE * places * rows)
    by_digit = sums.reshape(_SIZE, places * rows, *sums.shape[1:])
    run = total = by_digit[-1]
    for digit in range(_SIZE - 2, 0, -1):
        run = public.add(run, by_digit[digit])
        total = public.add(total, run)
    by_place = total.reshape(places, rows, *total.shape[1:])
    found = by_place[-1]
    for place in range(places - 2, -1, -1):
        found = public.add(public.mul_plain(found, _SIZE), by_place[place])
    return np.asarray(found)
