"""Okamoto-Uchiyama: ciphertexts as short as the modulus, and by far the cheapest sums.   EUROCRYPT 1998

n = p^2 q;  E(m) = g^m h^r mod n with h = g^n;  m = L(c^(p-1) mod p^2) / L(g^(p-1) mod p^2) mod p with L(x) = (x-1)/p.
Hidden unless n can be factored; a modulus of 2048 bits is rated like RSA's. Exponents r have twice as many bits as the
strength that is claimed (112 for 2048 bits, else 128), as those of Diffie-Hellman do.

A decryption is correct below p only, and one of a larger plaintext is that plaintext modulo p: who chose it and is told
the difference has a multiple of p. So `decrypt` tells nobody anything that is out of its range.
"""

from __future__ import annotations

from typing import ClassVar, Self

import gmpy2
import numpy as np
from gmpy2 import mpz

from atoll.errors import CodecError
from atoll.he.big import Big, in_range, read_numbers, refused, vector
from atoll.he.forked import shared
from atoll.he.layout import Octets, octets
from atoll.he.powers import Lifted, Powers, random_below, random_digits, random_prime
from atoll.he.scheme import Plain, SecretHE, Vector

__all__ = ["OU", "OUSecret"]

_WINDOW = 11
_FORK = 600  # encryptions below which a process is not worth its start


class OU(Big):
    """The public half: n, g and h = g^n."""

    scheme: ClassVar[str] = "ou"

    def __init__(self, bits: int, n: mpz, g: mpz, h: mpz, workers: int = 1) -> None:
        prime = (bits + 2) // 3
        # The order of h divides (p-1)(q-1), of bits - prime bits.
        super().__init__(bits, n, h, prime - 1, 224 if bits < 3072 else 256, bits - prime + 64, workers)
        self.g = g
        self._messages = Powers(g, n, -(-self.capacity // 8), 8)

    @classmethod
    def load(cls, bits: int, key: Octets, workers: int = 1) -> Self:
        width = bits // 8
        if key.shape != (3 * width,):
            raise CodecError(f"a key of ou-{bits} has {3 * width} bytes, and {len(key)} came")
        n, g, h = read_numbers(key.reshape(3, width))
        fine = n.bit_length() == bits and n % 2 == 1 and 1 < g < n and 1 < h < n
        if not fine or gmpy2.gcd(g * h, n) != 1:
            raise CodecError(f"what came is no key of ou-{bits}")
        return cls(bits, n, g, h, workers)

    def key(self) -> Octets:
        return octets([self.modulus, self.g, self.h], self.width).reshape(-1)

    def message(self, plain: Octets) -> list[mpz]:
        digits = np.zeros((self._messages.digits, len(plain)), np.uint16)
        digits[: plain.shape[1]] = plain.T
        return self._messages(digits)


class OUSecret(SecretHE):
    """With p and q, g^m can be left to (1 + m k) with k = 0 modulo pq, and h^r be reckoned modulo p^2 and q apart.

    g is the product of a part of order p and one that lies in the group of encryptions of 0; the latter's powers are
    hidden by h^r as well as they would be part of it, so E(m) = (1 + m k) h^r has the same distribution. Modulo p^2,
    1 + m k = 1 + p m (k / p), and m (k / p) joins the sum of `Lifted`.
    """

    public: OU

    def __init__(self, p: mpz, q: mpz, g: mpz, bits: int, workers: int = 1) -> None:
        n = p * p * q
        self.public = OU(bits, n, g, gmpy2.powmod(g, n, n), workers)
        self._p, self._q, self._pp = p, q, p * p
        self._back = gmpy2.invert(self._log(g), p)
        # (1 + k) generates the part of order p, and k = 0 modulo q: scaled so that it has the same logarithm as g.
        self._k = p * q * (gmpy2.invert(q * (p - 1), p) * self._log(g) % p)
        self._join = gmpy2.invert(self._pp, q)
        count = -(-self.public.short // _WINDOW)
        self._lifted = Lifted(self.public.h % self._pp, p, count, _WINDOW)
        self._powers = Powers(self.public.h % q, q, count, _WINDOW)

    @classmethod
    def generate(cls, bits: int, workers: int = 1) -> Self:
        """A new key of so many bits."""
        size = (bits + 2) // 3
        while True:
            p, q = random_prime(size), random_prime(bits - 2 * size)
            n = p * p * q
            g = random_below(n)
            proper = n.bit_length() == bits and p != q and gmpy2.gcd(g, n) == 1
            if proper and gmpy2.powmod(g, p - 1, p * p) != 1:
                return cls(p, q, g, bits, workers)

    def _log(self, c: mpz) -> mpz:
        """L(c^(p-1) mod p^2)."""
        return (gmpy2.powmod(c % self._pp, self._p - 1, self._pp) - 1) // self._p

    def encrypt(self, values: Plain) -> Vector:
        return vector(read_numbers(self._hidden(self.public.checked(values), False)))

    def seal(self, plain: Octets) -> Octets:
        return self._hidden(self.public.checked(plain, True), True)

    def _hidden(self, plain: Octets, signed: bool) -> Octets:
        _ = self._lifted.tables, self._powers.tables  # before processes are forked

        def work(a: int, b: int) -> Octets:
            return self.public.to_bytes(vector(self._encrypt(read_numbers(plain[a:b], signed))))

        return shared(work, len(plain), self.public.workers, _FORK)

    def _encrypt(self, plain: list[mpz]) -> list[mpz]:
        digits = random_digits(self._powers.digits, _WINDOW, len(plain))
        p, q, pp, k, join = self._p, self._q, self._pp, self._k // (self._p * self._q) * self._q, self._join
        low = [
            each * (1 + p * ((lift + m * k) % p)) % pp
            for (each, lift), m in zip(self._lifted(digits), plain, strict=True)
        ]
        high = self._powers(digits)
        return [x + pp * ((y - x) * join % q) for x, y in zip(low, high, strict=True)]

    def decrypt(self, c: Vector, bits: int, what: str) -> Octets:
        p, back = self._p, self._back

        def work(a: int, b: int) -> Octets:
            return in_range([self._log(each) * back % p for each in c[a:b].tolist()], bits)

        return refused(shared(work, len(c), self.public.workers, 32), what)
