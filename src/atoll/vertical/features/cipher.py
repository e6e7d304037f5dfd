"""What work on features needs of an additive cipher: that much of those in `atoll.he`, and of any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Load", "Octets", "Public", "Secret", "Vector"]

Octets = NDArray[np.uint8]

Vector = NDArray[Any]
"""Ciphertexts: the first dimension is theirs, and what else there is belongs to the cipher."""


class Public(Protocol):
    """The half that encrypts and adds up."""

    @property
    def name(self) -> str:
        """ "ou-2048"."""

    @property
    def capacity(self) -> int:
        """Plaintexts are below 2^capacity."""

    def key(self) -> Octets:
        """This half, as bytes [k]."""

    def add(self, a: Vector, b: Vector) -> Vector:
        """Each with each."""

    def add_plain(self, c: Vector, value: int) -> Vector:
        """A number from 0 to each."""

    def mul_plain(self, c: Vector, factor: int) -> Vector:
        """Each times a whole number from 0."""

    def sum_by_bins(self, c: Vector, rows: NDArray[Any], bins: NDArray[Any], count: int) -> Vector:
        """Sums [count]: c[rows[i]] is added to the sum bins[i]."""

    def rerandomise(self, c: Vector) -> Vector:
        """The same plaintexts, and nothing left of how they came about."""

    def to_bytes(self, c: Vector) -> Octets:
        """[n] -> uint8 [n, width]."""

    def from_bytes(self, blob: Octets, what: str) -> Vector:
        """The other way round.  Raises CodecError where one is no ciphertext."""


class Secret(Protocol):
    """The half that decrypts."""

    @property
    def public(self) -> Public:
        """The other half."""

    def encrypt(self, values: Any) -> Vector:
        """Ciphertexts [n] of whole numbers from 0."""

    def decrypt(self, c: Vector, bits: int, what: str) -> Octets:
        """Plaintexts as rows of little-endian bytes.  Raises CodecError where one has more bits."""


Load = Callable[[str, Octets], Public]
"""The public half of a cipher of that name from its bytes: `atoll.he.load`."""
