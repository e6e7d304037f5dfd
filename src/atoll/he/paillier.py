"""Paillier, with the faster encryption of Damgård, Jurik and Nielsen.   EUROCRYPT 1999;  Int. J. Inf. Sec. 2010

n = pq;  E(m) = (1 + n m) h^r mod n^2 with h = (-x^2)^n and r of half as many bits as n, p = q = 3 modulo 4.
"""

from __future__ import annotations

from typing import ClassVar, Self

import gmpy2
from gmpy2 import mpz

from atoll.errors import CodecError
from atoll.he.big import Big, in_range, read_numbers, refused, vector
from atoll.he.forked import shared
from atoll.he.layout import Octets, octets
from atoll.he.powers import Lifted, random_below, random_digits, random_prime
from atoll.he.scheme import Plain, SecretHE, Vector

__all__ = ["Paillier", "PaillierSecret"]

_WINDOW = 8
_FORK = 50


class Paillier(Big):
    """The public half: n and h."""

    scheme: ClassVar[str] = "paillier"

    def __init__(self, bits: int, n: mpz, h: mpz, workers: int = 1) -> None:
        super().__init__(bits, n * n, h, bits - 1, bits // 2, bits + 64, workers)
        self.n = n

    @classmethod
    def load(cls, bits: int, key: Octets, workers: int = 1) -> Self:
        width = bits // 8
        if key.shape != (3 * width,):
            raise CodecError(f"a key of paillier-{bits} has {3 * width} bytes, and {len(key)} came")
        (n,), (h,) = read_numbers(key[None, :width]), read_numbers(key[None, width:])
        if n.bit_length() != bits or n % 2 == 0 or not 1 < h < n * n or gmpy2.gcd(h, n) != 1:
            raise CodecError(f"what came is no key of paillier-{bits}")
        return cls(bits, n, h, workers)

    def key(self) -> Octets:
        return octets([self.n + (self.h << self.bits)], 3 * self.bits // 8).reshape(-1)

    def message(self, plain: Octets) -> list[mpz]:
        return [1 + self.n * m for m in read_numbers(plain)]


class PaillierSecret(SecretHE):
    """With p and q everything is reckoned modulo p^2 and q^2 apart.

    Modulo p^2, 1 + n m = 1 + p (q m), and q m joins the sum of `Lifted`.
    """

    public: Paillier

    def __init__(self, p: mpz, q: mpz, h: mpz, bits: int, workers: int = 1) -> None:
        self.public = Paillier(bits, p * q, h, workers)
        self._primes = (p, q)
        self._squares = (p * p, q * q)
        n = p * q
        # L((1 + n)^(p-1) mod p^2) = (p-1) q modulo p
        self._back = tuple(gmpy2.invert((f - 1) * (n // f), f) for f in self._primes)
        self._join, self._join_squares = gmpy2.invert(p, q), gmpy2.invert(p * p, q * q)
        count = -(-self.public.short // _WINDOW)
        self._tables = [
            Lifted(h % square, f, count, _WINDOW)
            for f, square in zip(self._primes, self._squares, strict=True)
        ]

    @classmethod
    def generate(cls, bits: int, workers: int = 1) -> Self:
        """A new key of so many bits."""
        while True:
            p, q = random_prime(bits // 2, (3,)), random_prime(bits // 2, (3,))
            n = p * q
            x = random_below(n)
            if p != q and n.bit_length() == bits and gmpy2.gcd(x * (p - 1) * (q - 1), n) == 1:
                return cls(p, q, gmpy2.powmod(-x * x % n, n, n * n), bits, workers)

    def encrypt(self, values: Plain) -> Vector:
        return vector(read_numbers(self._hidden(self.public.checked(values), False)))

    def seal(self, plain: Octets) -> Octets:
        return self._hidden(self.public.checked(plain, True), True)

    def _hidden(self, plain: Octets, signed: bool) -> Octets:
        for table in self._tables:
            _ = table.tables  # before processes are forked

        def work(a: int, b: int) -> Octets:
            return self.public.to_bytes(vector(self._encrypt(read_numbers(plain[a:b], signed))))

        return shared(work, len(plain), self.public.workers, _FORK)

    def _encrypt(self, plain: list[mpz]) -> list[mpz]:
        digits = random_digits(self._tables[0].digits, _WINDOW, len(plain))
        n, parts = self.public.n, []
        for table, f, square in zip(self._tables, self._primes, self._squares, strict=True):
            other = n // f
            parts.append(
                [
                    each * (1 + f * ((lift + m * other) % f)) % square
                    for (each, lift), m in zip(table(digits), plain, strict=True)
                ]
            )
        (pp, qq), join = self._squares, self._join_squares
        return [x + pp * ((y - x) * join % qq) for x, y in zip(*parts, strict=True)]

    def decrypt(self, c: Vector, bits: int, what: str) -> Octets:
        (p, q), join = self._primes, self._join

        def work(a: int, b: int) -> Octets:
            listed = c[a:b].tolist()
            low, high = (
                [(gmpy2.powmod(each % square, f - 1, square) - 1) // f * back % f for each in listed]
                for f, square, back in zip(self._primes, self._squares, self._back, strict=True)
            )
            return in_range([x + p * ((y - x) * join % q) for x, y in zip(low, high, strict=True)], bits)

        return refused(shared(work, len(c), self.public.workers, 8), what)
