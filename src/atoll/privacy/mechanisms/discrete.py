"""Noise over whole numbers: the discrete Gaussian, drawn exactly, and Skellam noise."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoll.errors import ConfigError
from atoll.privacy.source import Draws

__all__ = ["discrete_gaussian", "skellam"]

_Whole = np.ndarray[Any, np.dtype[np.int64]]
_Truth = np.ndarray[Any, np.dtype[np.bool_]]
_LARGEST = 1 << 25
_FAR = 60  # scales of the proposal: never accepted beyond, but for one time in exp(1700)


def discrete_gaussian(size: int, variance: int | Fraction, draws: Draws) -> Tensor:
    """`size` whole numbers with probabilities proportional to exp(-x^2 / (2 variance)), [size] int64.

    Exact: only uniform whole numbers are drawn and compared, no floating point is involved.   Canonne, Kamath and
    Steinke, NeurIPS 2020, algorithms 1 to 3.  Raises ConfigError where 64-bit numbers would not do: deviations
    above about 5 700.
    """
    variance = Fraction(variance)
    if variance <= 0:
        raise ConfigError(f"variance cannot be {variance}", hint="variance is above 0")
    top, bottom = variance.numerator, variance.denominator
    scale = math.isqrt(top // bottom) + 1
    if scale**2 * bottom > _LARGEST:
        raise ConfigError(
            f"a variance of {variance} is too large, or has too large a denominator, to draw exactly",
            hint="round it up to a whole number, scale values by less, or draw Skellam noise",
        )
    found = np.empty(size, dtype=np.int64)
    open_ = np.arange(size)
    while len(open_):
        proposed = _discrete_laplace(len(open_), scale, draws)
        near = np.minimum(np.abs(proposed), _FAR * scale)
        gap = near * (scale * bottom) - top
        taken = _happens(gap**2, np.full(len(open_), 2 * top * bottom * scale**2), draws)
        found[open_[taken]] = proposed[taken]
        open_ = open_[~taken]
    return torch.from_numpy(found)


def _discrete_laplace(size: int, scale: int, draws: Draws) -> _Whole:
    """Whole numbers with probabilities proportional to exp(-|x| / scale)."""
    found = np.empty(size, dtype=np.int64)
    open_ = np.arange(size)
    while len(open_):
        count = len(open_)
        low = draws.below(np.full(count, scale))
        kept = _happens(low, np.full(count, scale), draws)
        high = np.zeros(count, dtype=np.int64)
        going = np.flatnonzero(kept)
        while len(going):
            one = np.ones(len(going), dtype=np.int64)
            going = going[_happens(one, one, draws)]
            high[going] += 1
        value = low + scale * high
        minus = (draws.words(count) & np.uint64(1)).astype(np.bool_)
        kept &= ~(minus & (value == 0))  # zero has one sign
        found[open_[kept]] = np.where(minus, -value, value)[kept]
        open_ = open_[~kept]
    return found


def _happens(top: _Whole, bottom: _Whole, draws: Draws) -> _Truth:
    """Whether events of probability exp(-top / bottom) happen, exactly."""
    whole, rest = top // bottom, top % bottom
    alive = _below_one(rest, bottom, draws)
    going = np.flatnonzero(alive & (whole > 0))
    while len(going):  # each whole part is one more event of probability 1 / e
        one = np.ones(len(going), dtype=np.int64)
        passed = _below_one(one, one, draws)
        alive[going[~passed]] = False
        whole[going] -= 1
        going = going[passed]
        going = going[whole[going] > 0]
    return alive


def _below_one(top: _Whole, bottom: _Whole, draws: Draws) -> _Truth:
    """The same for top <= bottom: the alternating series of exp, as a race that ends at an odd or an even number."""
    ended = np.zeros(len(top), dtype=np.int64)
    going, k = np.arange(len(top)), 1
    while len(going):
        on = draws.below(bottom[going] * k) < top[going]
        ended[going[~on]] = k
        going, k = going[on], k + 1
    odd: _Truth = ended % 2 == 1
    return odd


def skellam(size: int, variance: float, draws: Draws) -> Tensor:
    """`size` differences of two independent Poisson numbers, of mean 0 and that variance, [size] int64.

    By inversion of tables in float64: each number is off by at most about 1e-13 in total variation. Sums of such
    noise are such noise, with the sum of the variances.   Agarwal, Kairouz and Liu, NeurIPS 2021.
    """
    if not (variance > 0 and math.isfinite(variance)):
        raise ConfigError(f"variance cannot be {variance!r}", hint="variance is above 0")
    table = _poisson(variance / 2)
    plus, minus = (np.searchsorted(table, draws.uniform(size), side="right") for _ in range(2))
    return torch.from_numpy((plus - minus).astype(np.int64))


def _poisson(mean: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The probabilities of being at most each number around the mean; where they begin cancels in a difference."""
    width = 12 * math.sqrt(mean) + 40
    low, high = max(0, math.floor(mean - width)), math.ceil(mean + width)
    ratios = np.log(mean / np.arange(low + 1, high + 1))  # of a number to the one before
    steps = np.concatenate([[0.0], np.cumsum(ratios)])
    chances = np.exp(steps - steps.max())
    table: np.ndarray[Any, np.dtype[np.float64]] = np.cumsum(chances)[:-1] / chances.sum()
    return table
