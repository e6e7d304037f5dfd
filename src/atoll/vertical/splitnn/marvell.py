"""MARVELL: the least noise that keeps labels from being guessed by gradients.   Li et al., ICLR 2022, section 4

In a batch the gradients of positive rows are taken for N(m1, v I), those of negative ones for N(m0, u I), D = m1 - m0.
Noise of covariance S_c = (l1 - l2) D D' / |D|^2 + l2 I, l1 >= l2 >= 0, is added to those of class c. It makes the sum
of both Kullback-Leibler divergences

    KL = f / 2 - d,   f = (d-1) (b/B + B/b) + (a + |D|^2)/A + (A + |D|^2)/a,

    a = l1(0) + u,  b = l2(0) + u,  A = l1(1) + v,  B = l2(1) + v,

at a mean power of at most P = p (l1(1) + (d-1) l2(1)) + (1-p) (l1(0) + (d-1) l2(0)), p the share of positive rows.

Everything is a posynomial in a, b, A and B: a geometric program, convex in their logarithms. For u <= v (else exchange
the classes) B = v in the best solution: to scale b and B down together keeps b/B and frees power, until b = u or B = v;
where b = u, B above v only moves b/B away from 1. All of P is used, since a and A scaled up together make f smaller.
With b fixed, A is a linear function of a, and f' = 0 where A/a = sqrt((c + k|D|^2) / (c + |D|^2)), k = (1-p)/p,
c = A + k a; f is convex in a, so that the nearest allowed a is best. What is left is one number, b, in which the least
f is convex over log b: golden section.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Noise", "auc_bound", "enough_noise", "kl_for", "least_noise"]

_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 60  # the interval shrinks by 3e-13


@dataclass(frozen=True)
class Noise:
    """Variances of the noise, along D (`along`) and in every other direction (`across`): of (negative, positive) rows.

    `kl` is the sum of both divergences that is left.
    """

    along: tuple[float, float]
    across: tuple[float, float]
    kl: float


def auc_bound(kl: float) -> float:
    """What no guess of labels by gradients exceeds: 1/2 + sqrt(KL)/2 - KL/8 below 4, and 1 from there.   Theorem 1"""
    kl = max(kl, 0.0)
    return 1.0 if kl >= 4 else 0.5 + math.sqrt(kl) / 2 - kl / 8


def least_noise(u: float, v: float, gap: float, p: float, d: int, power: float) -> Noise:
    """The noise with the least KL.

    Args:
        u, v: variance of each coordinate, of negative and of positive rows.
        gap: |D|^2.
        p: the share of positive rows, above 0 and below 1.
        d: coordinates.
        power: P, the mean of the squared length of what is added.
    """
    if v < u:
        mirror = least_noise(v, u, gap, 1 - p, d, power)
        return Noise(mirror.along[::-1], mirror.across[::-1], mirror.kl)
    least = max(v, gap, power) * 1e-12 or 1e-300  # variances of 0 have no divergence
    problem = _Problem(max(u, least), max(v, least), gap, p, d, power)
    low, high = math.log(problem.u), math.log(min(problem.v, problem.u + power / (d * (1 - p))))
    b = math.exp(_lowest(problem, low, high)) if d > 1 else problem.u
    f, a, other = problem.best(b)
    return Noise(
        along=(max(a - problem.u, 0.0), max(other - problem.v, 0.0)),
        across=(max(b - problem.u, 0.0), 0.0),
        kl=max(f / 2 - d, 0.0),
    )


def kl_for(bound: float) -> float:
    """The KL at which `auc_bound` is this, between 1/2 and 1."""
    return (2 - math.sqrt(8 - 8 * bound)) ** 2


def enough_noise(u: float, v: float, gap: float, p: float, d: int, kl: float) -> Noise:
    """The noise of the least power that leaves no more than this KL, to a part in 10^6; as `least_noise`.

    The KL falls with the power, so that halving intervals of its logarithm finds it.
    """
    low, high = 0.0, max(gap, u, v) or 1e-300
    if (found := least_noise(u, v, gap, p, d, 0.0)).kl <= kl:
        return found
    while (found := least_noise(u, v, gap, p, d, high)).kl > kl:
        low, high = high, 4 * high
    while high - low > 1e-6 * high:
        middle = math.sqrt(low * high) if low > 1e-9 * high else high / 16
        trial = least_noise(u, v, gap, p, d, middle)
        if trial.kl > kl:
            low = middle
        else:
            high, found = middle, trial
    return found


@dataclass(frozen=True)
class _Problem:
    """u <= v."""

    u: float
    v: float
    gap: float
    p: float
    d: int
    power: float

    def best(self, b: float) -> tuple[float, float, float]:
        """f, a and A, the least f with this b."""
        p, k = self.p, (1 - self.p) / self.p
        left = self.power - (1 - p) * (self.d - 1) * (b - self.u)  # for the noise along D
        c = (left + p * self.v + (1 - p) * self.u) / p
        ratio = math.sqrt((c + k * self.gap) / (c + self.gap))
        a = max(min(c / (k + ratio), (c - self.v) / k), b)
        other = max(c - k * a, self.v)
        f = (a + self.gap) / other + (other + self.gap) / a + (self.d - 1) * (b / self.v + self.v / b)
        return f, a, other


def _lowest(problem: _Problem, low: float, high: float) -> float:
    """Where the least f is, by golden section over log b."""
    inner, outer = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    f_inner, f_outer = problem.best(math.exp(inner))[0], problem.best(math.exp(outer))[0]
    for _ in range(_STEPS):
        if f_inner <= f_outer:
            high, outer, f_outer = outer, inner, f_inner
            inner = high - _GOLDEN * (high - low)
            f_inner = problem.best(math.exp(inner))[0]
        else:
            low, inner, f_inner = inner, outer, f_outer
            outer = low + _GOLDEN * (high - low)
            f_outer = problem.best(math.exp(outer))[0]
    return (low + high) / 2
