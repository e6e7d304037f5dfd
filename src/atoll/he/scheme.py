"""A cipher whose ciphertexts can be added: what everybody may do with it, and what only the owner of its key can."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypedDict

import numpy as np
from numpy.typing import NDArray

from atoll.errors import ConfigError
from atoll.he.forked import shared
from atoll.he.layout import Octets, octets

__all__ = ["AdditiveHE", "Octets", "Plain", "SecretHE", "Told", "Vector", "told"]

Vector = NDArray[Any]
"""Ciphertexts: the first dimensions are theirs, and what else there is belongs to the cipher."""

Plain = Octets | Sequence[int]
"""Plaintexts, whole numbers from 0: as such, or as rows of little-endian bytes [n, k]."""


class AdditiveHE(ABC):
    """The public half: whoever has it can encrypt and add up, and cannot decrypt.

    Sums and products are those of the plaintexts as whole numbers as long as what is decrypted lies between 0 and
    2^`capacity`; whoever adds sees to that beforehand (`Layout`). Sums carry the randomness of what was added:
    `rerandomise` before they are sent.

    Attributes:
        bits: of the modulus.
        capacity: plaintexts are below 2^capacity.
        width: bytes of a ciphertext.
        workers: processes that share long work (forked; 1 where that cannot be done).
    """

    scheme: ClassVar[str]
    bits: int
    capacity: int
    width: int
    workers: int

    @property
    def name(self) -> str:
        """ "ou-2048"."""
        return f"{self.scheme}-{self.bits}"

    @abstractmethod
    def key(self) -> Octets:
        """This half, as bytes [k] for `load`."""

    @abstractmethod
    def encrypt(self, values: Plain) -> Vector:
        """Ciphertexts [n].  Raises ConfigError, before anything is encrypted, where a value does not fit."""

    @abstractmethod
    def nothing(self, *shape: int) -> Vector:
        """What adds nothing, in this shape: it hides nothing either."""

    @abstractmethod
    def add(self, a: Vector, b: Vector) -> Vector:
        """Each with each."""

    @abstractmethod
    def add_plain(self, c: Vector, value: int) -> Vector:
        """A number from 0 to each."""

    @abstractmethod
    def mul_plain(self, c: Vector, factor: int) -> Vector:
        """Each times a whole number from 0."""

    @abstractmethod
    def sum_by_bins(self, c: Vector, rows: NDArray[Any], bins: NDArray[Any], count: int) -> Vector:
        """Sums [count]: c[rows[i]] is added to the sum bins[i]."""

    @abstractmethod
    def pack(self, c: Vector, bits: int) -> Vector:
        """Several plaintexts below 2^bits in one: [n] -> [ceil(n / per)], the first in the lowest bits."""

    def per(self, bits: int) -> int:
        """How many plaintexts of so many bits fit in one."""
        return self.capacity // bits

    @abstractmethod
    def rerandomise(self, c: Vector) -> Vector:
        """The same plaintexts, and nothing left of how they came about: also for the owner of the key."""

    def reply(self, c: Vector, bits: int, lift: int) -> Octets:
        """Sums [n] as they may leave: each plus `lift` (`Layout`), packed by `bits`, and randomised anew.

        Returns bytes [ceil(n / per), width].
        """
        per = self.per(bits)
        lifts = sum(lift << (bits * at) for at in range(per))

        def work(a: int, b: int) -> Octets:
            packed = self.add_plain(self.pack(c[a * per : b * per], bits), lifts)
            return self.to_bytes(self.rerandomise(packed))

        _ = self.rerandomise(c[:0])  # makes tables, before processes are forked
        return shared(work, -(-len(c) // per), self.workers, self.share(bits))

    def share(self, bits: int) -> int:
        """Replies below which a process is not worth its start."""
        return 1

    @abstractmethod
    def to_bytes(self, c: Vector) -> Octets:
        """[n] -> uint8 [n, width]."""

    @abstractmethod
    def from_bytes(self, blob: Octets, what: str) -> Vector:
        """The other way round.  Raises CodecError, which names `what` and the first that is no ciphertext."""

    def checked(self, values: Plain, sign: bool = False) -> Octets:
        """Plaintexts as rows of bytes.  Raises ConfigError where one has more bits than there is room for."""
        given = values if isinstance(values, np.ndarray) else octets(values)
        whole, rest = divmod(self.capacity, 8)
        ones = np.where(given[:, -1:] >> 7, 255, 0).astype(np.uint8) if sign else np.uint8(0)
        over = given[:, whole:] ^ ones
        if rest and over.shape[1]:
            over[:, 0] >>= rest
        if over.any():
            raise ConfigError(
                f"{self.name} holds plaintexts of {self.capacity} bits, and one is longer",
                hint="use fewer bits for each number, or a longer key",
            )
        return given[:, : whole + 1]


class SecretHE(ABC):
    """The secret half, with the public one: whoever has it can decrypt, and encrypts faster."""

    public: AdditiveHE

    @abstractmethod
    def encrypt(self, values: Plain) -> Vector:
        """As the public half does, with the help of the key."""

    @abstractmethod
    def seal(self, plain: Octets) -> Octets:
        """Numbers in two's complement [n, k] as bytes to send [n, width].

        Without the key nobody knows what -1 is.
        """

    @abstractmethod
    def decrypt(self, c: Vector, bits: int, what: str) -> Octets:
        """Plaintexts as rows of little-endian bytes [n, ceil(bits / 8)].

        Raises CodecError where one has more than `bits` bits, which no honest sum has: what it is then must not get
        out, since for Okamoto-Uchiyama it tells the key to who chose the ciphertext.
        """


class Told(TypedDict):
    """What a transcript is told of a message: the cipher of what is in it, None where it is open, and how much."""

    under: str | None
    ciphertexts: int


def told(public: AdditiveHE, count: int) -> Told:
    """Of a message with so many numbers; `Link.send` takes it."""
    open_ = public.scheme == "none"
    return {"under": None if open_ else public.name, "ciphertexts": 0 if open_ else count}
