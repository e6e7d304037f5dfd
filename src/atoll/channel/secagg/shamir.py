"""Shamir's secret sharing of numbers below p = 2^256 - 189.   Shamir, CACM 1979

A secret is the constant term of a random polynomial of degree t - 1; shares are its values at x = 1, 2, ...; any t of
them give it back, fewer say nothing of it. Numbers are Python's own: at this size they beat tables and libraries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from atoll.errors import ConfigError

__all__ = ["P", "combine", "lagrange", "split"]

P = 2**256 - 189
"""The largest prime below 2^256, so that a share is 32 bytes, as a key is."""

_STEPS = 24
"""Horner steps between two reductions: x is small, and numbers of a few hundred bits are cheaper than remainders."""


def below(entropy: Callable[[int], bytes]) -> int:
    """A uniform number below p. All but one in 2^248 draws are taken at once."""
    while (value := int.from_bytes(entropy(32), "big")) >= P:
        pass
    return value


def split(secret: int, threshold: int, shares: int, entropy: Callable[[int], bytes]) -> list[int]:
    """The shares for x = 1 .. `shares`, of which `threshold` give the secret back.

    `entropy(n)` gives n uniform bytes. Raises ConfigError where 1 <= threshold <= shares or 0 <= secret < p is broken.
    """
    if not (1 <= threshold <= shares and 0 <= secret < P):
        raise ConfigError(f"cannot share a secret with threshold {threshold} among {shares}")
    coefficients = [below(entropy) for _ in range(threshold - 1)]  # of the highest power first
    coefficients.append(secret)
    runs = [coefficients[at : at + _STEPS] for at in range(0, threshold, _STEPS)]
    values = []
    for x in range(1, shares + 1):
        value = 0
        for run in runs:
            for coefficient in run:
                value = value * x + coefficient
            value %= P
        values.append(value)
    return values


@lru_cache(maxsize=4096)
def lagrange(xs: tuple[int, ...]) -> tuple[int, ...]:
    """Weights l_i with f(0) = sum_i l_i f(x_i) mod p, for any f of degree below len(xs).

    l_i = prod_j x_j / (x_i prod_{j != i} (x_j - x_i)). One inversion serves all of them (Montgomery's trick).
    Raises ConfigError unless the x are different numbers from 1 on.
    """
    if not xs or min(xs) < 1 or len(set(xs)) != len(xs):
        raise ConfigError("shares must have different numbers, from 1 on")
    whole = 1
    divisors = []
    for x in xs:
        whole = whole * x % P
        divisors.append(x * math.prod([other - x for other in xs if other != x]) % P)
    before = [1]
    for divisor in divisors:
        before.append(before[-1] * divisor % P)
    inverse = whole * pow(before.pop(), -1, P) % P
    weights = []
    for divisor, product in zip(reversed(divisors), reversed(before), strict=True):
        weights.append(inverse * product % P)
        inverse = inverse * divisor % P
    return tuple(reversed(weights))


def combine(shares: Mapping[int, int] | Sequence[tuple[int, int]]) -> int:
    """The secret, from exactly as many shares (x and value) as its threshold. Wrong shares give a wrong secret."""
    pairs = sorted(dict(shares).items())
    weights = lagrange(tuple(x for x, _ in pairs))
    return sum(weight * value for weight, (_, value) in zip(weights, pairs, strict=True)) % P
