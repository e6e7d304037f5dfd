"""Random powers of one number: tables of its powers, so that each takes a few products and no squarings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property

import gmpy2
import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray

__all__ = ["Lifted", "Powers", "random_below", "random_digits", "random_prime"]


class Powers:
    """base^e mod modulus for exponents that are given as digits of `window` bits, the lowest first.

    Each exponent takes a product a digit. A table has 2^window numbers a digit; it is made when it is used first.
    (Brickell, Gordon, McCurley and Wilson, EUROCRYPT 1992, in its simplest form.) Its time depends on no exponent but
    by the sizes of numbers; what it reads from memory does.
    """

    def __init__(self, base: mpz, modulus: mpz, digits: int, window: int) -> None:
        self.base, self.modulus, self.digits, self.window = base, modulus, digits, window

    @cached_property
    def tables(self) -> list[list[mpz]]:
        """[digits][2^window]."""
        modulus, step, made = self.modulus, self.base, []
        for _ in range(self.digits):
            row = [mpz(1)]
            for _ in range((1 << self.window) - 1):
                row.append(row[-1] * step % modulus)
            made.append(row)
            step = row[-1] * step % modulus
        return made

    def __call__(self, digits: NDArray[np.uint16]) -> list[mpz]:
        """One power for each column of digits [digits, n]."""
        modulus = self.modulus
        first, *rest = [(table, row.tolist()) for table, row in zip(self.tables, digits, strict=True)]
        found = [first[0][digit] for digit in first[1]]
        for table, row in rest:
            found = [each * table[digit] % modulus for each, digit in zip(found, row, strict=True)]
        return found


class Lifted:
    """The same modulo p^2, for a base whose order divides p - 1: half the work of `Powers`.

    An element x of that group is u (1 + p k) with u = x mod p and k = (x - u) / (p u) mod p. A product of several is
    the product of their u, which are half as long, times 1 + p times the sum of their k.
    """

    def __init__(self, base: mpz, p: mpz, digits: int, window: int) -> None:
        self.base, self.p, self.digits, self.window = base, p, digits, window

    @cached_property
    def tables(self) -> list[tuple[list[mpz], NDArray[np.uint32]]]:
        """u, and k as limbs of 32 bits, the lowest first: [digits][2^window], [digits][2^window, limbs]."""
        p, made = self.p, []
        limbs = -(-p.bit_length() // 32)
        for row in Powers(self.base, p * p, self.digits, self.window).tables:
            inverse, step = mpz(1), gmpy2.invert(row[1], p)
            units, lifts = [], []
            for each in row:
                high, unit = gmpy2.f_divmod(each, p)
                units.append(unit)
                lifts.append((high * inverse % p).to_bytes(4 * limbs, "little"))
                inverse = inverse * step % p
            made.append((units, np.frombuffer(b"".join(lifts), "<u4").reshape(-1, limbs)))
        return made

    def __call__(self, digits: NDArray[np.uint16]) -> list[tuple[mpz, mpz]]:
        """For each column of digits [digits, n] a power as u modulo p^2 and the sum of k, not reduced."""
        square = self.p * self.p
        (first, lifts), *rest = self.tables
        units = [first[digit] for digit in digits[0].tolist()]
        sums = np.zeros((digits.shape[1], lifts.shape[1] + 1), np.int64)
        sums[:, :-1] = lifts[digits[0]]
        for (unit, lifts), row in zip(rest, digits[1:], strict=True):
            units = [each * unit[digit] % square for each, digit in zip(units, row.tolist(), strict=True)]
            sums[:, :-1] += lifts[row]
        for limb in range(lifts.shape[1]):
            sums[:, limb + 1] += sums[:, limb] >> 32
        joined, width = (sums & 0xFFFFFFFF).astype("<u4").tobytes(), 4 * sums.shape[1]
        read = mpz.from_bytes
        found = [read(joined[at : at + width], "little") for at in range(0, len(joined), width)]
        return list(zip(units, found, strict=True))


def random_digits(digits: int, window: int, count: int) -> NDArray[np.uint16]:
    """Exponents from the operating system's randomness, uniform: [digits, count]."""
    drawn = np.frombuffer(os.urandom(2 * digits * count), np.uint16)
    return (drawn & np.uint16((1 << window) - 1)).reshape(digits, count)


def random_prime(bits: int, residue: Sequence[int] = (1, 3)) -> mpz:
    """A prime of so many bits whose highest two are ones, equal to one of `residue` modulo 4."""
    while True:
        drawn = mpz(int.from_bytes(os.urandom((bits + 7) // 8), "little")) & ((mpz(1) << bits) - 1)
        drawn |= (mpz(3) << (bits - 2)) | 1
        if int(drawn % 4) in residue and gmpy2.is_prime(drawn, 40):
            return drawn


def random_below(bound: mpz) -> mpz:
    """Uniform from 0 to bound - 1, up to 2^-64."""
    size = bound.bit_length() // 8 + 9
    return mpz(int.from_bytes(os.urandom(size), "little")) % bound
