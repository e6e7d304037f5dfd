"""What ciphers over the integers modulo a large number have in common: ciphertexts are multiplied to add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import gmpy2
import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray

from atoll.errors import CodecError
from atoll.he.forked import forked, shared
from atoll.he.layout import Octets, octets
from atoll.he.powers import Powers, random_digits
from atoll.he.scheme import AdditiveHE, Plain, Vector

__all__ = ["Big", "in_range", "read_numbers", "refused", "vector"]

_WINDOW = 8
_FORK = 10_000  # products below which a process is not worth its start


class Big(AdditiveHE):
    """Ciphertexts are units modulo `modulus`, as gmpy2's numbers in arrays of objects.

    Args:
        modulus: of ciphertexts.
        h: an encryption of 0, whose powers are all of them.
        short: bits of the exponent that hides a plaintext.
        long: bits with which h^s is uniform among all encryptions of 0 up to 2^-64, whoever looks.
    """

    modulus: mpz

    def __init__(
        self, bits: int, modulus: mpz, h: mpz, capacity: int, short: int, long: int, workers: int
    ) -> None:
        self.bits, self.modulus, self.h, self.capacity, self.workers = bits, modulus, h, capacity, workers
        self.width = (modulus.bit_length() + 7) // 8
        self.short, self.long = short, long
        self._powers = Powers(h, modulus, -(-long // _WINDOW), _WINDOW)

    @classmethod
    def load(cls, bits: int, key: Octets, workers: int = 1) -> Self:
        """The half whose `key` these bytes are."""
        raise NotImplementedError

    def message(self, plain: Octets) -> list[mpz]:
        """What plaintexts are before h^r hides them."""
        raise NotImplementedError

    def zeros(self, count: int, bits: int) -> list[mpz]:
        """Fresh encryptions of 0, with exponents of so many bits."""
        digits = np.zeros((self._powers.digits, count), np.uint16)
        used = -(-bits // _WINDOW)
        digits[:used] = random_digits(used, _WINDOW, count)
        return self._powers(digits)

    def encrypt(self, values: Plain) -> Vector:
        plain = self.checked(values)

        def work(a: int, b: int) -> Octets:
            hidden = zip(self.message(plain[a:b]), self.zeros(b - a, self.short), strict=True)
            return self.to_bytes(vector([m * zero % self.modulus for m, zero in hidden]))

        return self._read(shared(work, len(plain), self.workers, _FORK * _WINDOW // self.short))

    def nothing(self, *shape: int) -> Vector:
        made = np.empty(shape, object)
        made.fill(mpz(1))
        return made

    def add(self, a: Vector, b: Vector) -> Vector:
        product: Vector = (a * b) % self.modulus
        return product

    def add_plain(self, c: Vector, value: int) -> Vector:
        product: Vector = c * self.message(self.checked([value]))[0] % self.modulus
        return product

    def mul_plain(self, c: Vector, factor: int) -> Vector:
        if factor < 0:
            raise ValueError("a factor is a whole number from 0")
        raised = gmpy2.powmod_base_list(c.ravel().tolist(), mpz(factor), self.modulus)
        return vector(raised).reshape(c.shape)

    def sum_by_bins(self, c: Vector, rows: NDArray[Any], bins: NDArray[Any], count: int) -> Vector:
        order = np.argsort(bins, kind="stable")
        values = c[rows[order]]
        ends = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=count))])
        modulus, one = self.modulus, mpz(1)

        def sums(a: int, b: int) -> list[mpz]:
            found, start = [], int(ends[a])
            listed = values[start : int(ends[b])].tolist()
            for low, high in zip(
                (ends[a:b] - start).tolist(), (ends[a + 1 : b + 1] - start).tolist(), strict=True
            ):
                total = listed[low] if high > low else one
                for each in listed[low + 1 : high]:
                    total = total * each % modulus
                found.append(total)
            return found

        workers = max(1, min(self.workers, len(rows) // _FORK))
        if workers == 1:
            return vector(sums(0, count))
        wanted = [len(rows) * at // workers for at in range(1, workers)]
        cuts = [0, *np.searchsorted(ends, wanted).tolist(), count]
        return self._read(forked(lambda a, b: self.to_bytes(vector(sums(a, b))), cuts))

    def pack(self, c: Vector, bits: int) -> Vector:
        per = self.per(bits)
        groups = -(-len(c) // per)
        grid = np.concatenate([c, self.nothing(groups * per - len(c))]).reshape(groups, per)
        shift, modulus = mpz(1) << bits, self.modulus

        columns: list[list[mpz]] = grid.T.tolist()
        found = columns.pop()
        while columns:
            raised = gmpy2.powmod_base_list(found, shift, modulus)
            found = [x * y % modulus for x, y in zip(raised, columns.pop(), strict=True)]
        return vector(found)

    def share(self, bits: int) -> int:
        return max(1, _FORK // (self.per(bits) * bits // 2 + self.long // _WINDOW))

    def rerandomise(self, c: Vector) -> Vector:
        return self.add(c, vector(self.zeros(c.size, self.long)).reshape(c.shape))

    def to_bytes(self, c: Vector) -> Octets:
        joined = b"".join([each.to_bytes(self.width, "little") for each in c.tolist()])
        return np.frombuffer(joined, np.uint8).reshape(len(c), self.width)

    def from_bytes(self, blob: Octets, what: str) -> Vector:
        if blob.ndim != 2 or blob.shape[1] != self.width:
            raise CodecError(
                f"{what} has {'x'.join(map(str, blob.shape))} bytes, and {self.name} has {self.width} a ciphertext"
            )
        read = self._read(blob)
        modulus, product = self.modulus, mpz(1)
        for each in read.tolist():
            product = product * each % modulus
        if gmpy2.gcd(product, modulus) != 1 or (len(read) and max(read.tolist()) >= modulus):
            for at, each in enumerate(read.tolist()):
                if not 0 < each < modulus:
                    raise CodecError(f"{what}: ciphertext {at} is out of the range of {self.name}")
                if gmpy2.gcd(each, modulus) != 1:
                    raise CodecError(f"{what}: ciphertext {at} has a factor of the modulus of {self.name}")
        return read

    def _read(self, blob: Octets) -> Vector:
        return vector(read_numbers(blob))


def read_numbers(blob: Octets, signed: bool = False) -> list[mpz]:
    """Rows of little-endian bytes as numbers."""
    width, joined = blob.shape[1], blob.tobytes()
    read = mpz.from_bytes
    return [read(joined[at : at + width], "little", signed=signed) for at in range(0, len(joined), width)]


def in_range(plain: Sequence[mpz], bits: int) -> Octets:
    """Decryptions of at most so many bits as rows of bytes, and a last one that is 0; what is out of range is gone."""
    size, bound = (bits + 7) // 8, mpz(1) << bits
    return octets([m if m < bound else 1 << 8 * size for m in plain], size + 1)


def refused(plain: Octets, what: str) -> Octets:
    """Rows of `in_range` without the last byte.  Raises CodecError where one was out of range."""
    if plain[:, -1].any():
        raise CodecError(
            f"{what} decrypts to what no sum can be", hint="the other party does not keep to the protocol"
        )
    return plain[:, :-1]


def vector(values: Sequence[mpz]) -> Vector:
    """Numbers as an array of objects [n]."""
    return np.fromiter(values, object, len(values))
