"""What sharing needs of a cipher that adds, and matrices times encrypted vectors.

A matrix of small integers x from 0 is multiplied by additions alone: x is cut into digits of 8 bits. With many rows and
few columns, all multiples of each ciphertext by a digit are laid out in a table, of which a row picks one for each of
its digits. With few rows and many columns, ciphertexts are first collected by the digit that they are to be multiplied
with (the buckets of Pippenger's method). Both take about one addition for each digit of the matrix, where powers would
take some forty.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atoll.errors import CodecError, ConfigError

__all__ = ["Octets", "Public", "Secret", "Unhidden", "keygen", "load", "numbers", "octets", "packed", "times"]

Octets = NDArray[np.uint8]
Vector = NDArray[Any]
"""Ciphertexts: the first dimension is theirs, and what else there is belongs to the cipher."""
_DIGIT = 8
_SIZE = 1 << _DIGIT


class Public(Protocol):
    """What everybody can do who has the public key, with whole numbers from 0 below 2^capacity."""

    capacity: int

    @property
    def name(self) -> str:
        """ "ou-2048"."""
        ...

    def key(self) -> Octets:
        """The public key, [k]."""
        ...

    def encrypt(self, values: Octets) -> Vector:
        """Numbers [n, bytes], the lowest byte first."""
        ...

    def add(self, a: Vector, b: Vector) -> Vector:
        """Each with each."""
        ...

    def mul_plain(self, c: Vector, factor: int) -> Vector:
        """Each times a whole number from 0."""
        ...

    def sum_by_bins(self, c: Vector, rows: NDArray[Any], bins: NDArray[Any], count: int) -> Vector:
        """Sums [count]: c[rows[i]] is added to the sum bins[i]."""
        ...

    def per(self, bits: int) -> int:
        """How many numbers of so many bits one ciphertext holds."""
        ...

    def pack(self, c: Vector, bits: int) -> Vector:
        """Numbers below 2^bits, `per` of them in each ciphertext, the first in the lowest bits."""
        ...

    def rerandomise(self, c: Vector) -> Vector:
        """The same numbers, and nothing left of how they came about."""
        ...

    def to_bytes(self, c: Vector) -> Octets:
        """[n] -> [n, width]."""
        ...

    def from_bytes(self, blob: Octets, what: str) -> Vector:
        """The inverse.  Raises CodecError."""
        ...


class Secret(Protocol):
    """What only the owner of the key can do."""

    @property
    def public(self) -> Public:
        """The public half."""
        ...

    def encrypt(self, values: Octets) -> Vector:
        """As the public half does, faster."""
        ...

    def decrypt(self, c: Vector, bits: int, what: str) -> Octets:
        """[n, ceil(bits / 8)].  Raises CodecError where a number has more bits."""
        ...


class Unhidden:
    """No cipher: whole numbers as they are, in 64 bytes each."""

    capacity, name, width = 512, "none", 64

    @property
    def public(self) -> Unhidden:
        """Itself."""
        return self

    def key(self) -> Octets:
        """None."""
        return np.zeros(0, np.uint8)

    def encrypt(self, values: Octets) -> Vector:
        """The numbers."""
        return np.array(numbers(values), dtype=object)

    def add(self, a: Vector, b: Vector) -> Vector:
        """Each with each."""
        return np.asarray(a + b)

    def mul_plain(self, c: Vector, factor: int) -> Vector:
        """Each times a number."""
        return np.asarray(c * factor)

    def sum_by_bins(self, c: Vector, rows: NDArray[Any], bins: NDArray[Any], count: int) -> Vector:
        """Sums by bin."""
        found = np.zeros(count, dtype=object)
        np.add.at(found, bins, c[rows])
        return found

    def per(self, bits: int) -> int:
        """As many as there is room for."""
        return self.capacity // bits

    def pack(self, c: Vector, bits: int) -> Vector:
        """Several numbers as one."""
        per = self.per(bits)
        packs = [
            sum(int(value) << (bits * at) for at, value in enumerate(c[start : start + per]))
            for start in range(0, len(c), per)
        ]
        return np.array(packs, dtype=object)

    def rerandomise(self, c: Vector) -> Vector:
        """Nothing is random here."""
        return c

    def to_bytes(self, c: Vector) -> Octets:
        """64 bytes each."""
        return octets(list(c), self.width)

    def from_bytes(self, blob: Octets, what: str) -> Vector:
        """The inverse."""
        if blob.ndim != 2 or blob.shape[1] != self.width:
            raise CodecError(f"{what} has {list(blob.shape)} bytes, and a number has {self.width}")
        return self.encrypt(blob)

    def decrypt(self, c: Vector, bits: int, what: str) -> Octets:
        """The numbers."""
        if any(int(value) >> bits for value in c):
            raise CodecError(f"{what} holds what no sum can be")
        return octets(list(c), (bits + 7) // 8)


def keygen(crypto: str) -> Secret:
    """A new key of a cipher that adds."""
    if crypto != "none":
        raise ConfigError(f"crypto = {crypto!r} is no cipher that adds", hint="known: none")
    return Unhidden()


def load(crypto: str, key: Octets) -> Public:
    """What another party has sent as its public key."""
    return keygen(crypto).public


def packed(rows: Octets, per: int) -> Octets:
    """Numbers [n, size] as `Public.pack` puts them side by side, [ceil(n / per), per * size]."""
    full = np.zeros((-(-len(rows) // per) * per, rows.shape[1]), np.uint8)
    full[: len(rows)] = rows
    return full.reshape(-1, per * rows.shape[1])


def octets(values: list[Any], size: int) -> Octets:
    """Whole numbers from 0 as rows of bytes, the lowest first, [n, size]."""
    joined = b"".join(int(value).to_bytes(size, "little") for value in values)
    return np.frombuffer(joined, np.uint8).reshape(len(values), size)


def numbers(rows: Octets) -> list[int]:
    """The inverse."""
    return [int.from_bytes(row.tobytes(), "little") for row in rows]


def times(public: Public, x: NDArray[np.int64], c: Vector, bits: int) -> Vector:
    """A matrix [n, d] of whole numbers from 0 with so many bits times encrypted numbers [d], encrypted, [n]."""
    places = -(-bits // _DIGIT)
    digits = (x[:, :, None] >> (_DIGIT * np.arange(places))) & (_SIZE - 1)
    return _tabled(public, digits, c) if len(x) > x.shape[1] else _collected(public, digits, c)


def _tabled(public: Public, digits: NDArray[np.int64], c: Vector) -> Vector:
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


def _collected(public: Public, digits: NDArray[np.int64], c: Vector) -> Vector:
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
