"""One event's privacy as `dp-accounting` has it: a Renyi curve over fixed orders, and the distribution of its loss.

Both are for ONE event, whatever its `count`; `accounting` composes them. None where an event has none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from atoll.errors import MissingExtraError
from atoll.privacy.events import (
    Adjacency,
    Correlated,
    DiscreteGaussian,
    Event,
    Everyone,
    Gaussian,
    Laplace,
    Poisson,
    Skellam,
)  # fmt: skip
from atoll.privacy.factorised import Vector

__all__ = ["epsilon_of", "exact", "library", "loss", "masses", "orders", "renyi", "shift"]


@lru_cache(maxsize=1)
def library() -> Any:
    """The parts of dp-accounting that are used.  Raises MissingExtraError where it is not installed."""
    try:
        from dp_accounting import dp_event, privacy_accountant
        from dp_accounting.pld import privacy_loss_distribution
        from dp_accounting.rdp import rdp_privacy_accountant
        from scipy import special
    except ImportError:
        raise MissingExtraError("dp-accounting", "dp", "privacy accounting") from None
    return SimpleNamespace(
        event=dp_event,
        pld=privacy_loss_distribution,
        rdp=rdp_privacy_accountant,
        special=special,
        neighbours=privacy_accountant.NeighboringRelation,
    )


def orders() -> Vector:
    """The orders of all curves, all above 1."""
    return np.asarray(library().rdp.DEFAULT_RDP_ORDERS, dtype=np.float64)


def epsilon_of(curve: Vector, delta: float) -> float:
    """The epsilon that a Renyi curve gives at `delta`; infinite where it says nothing."""
    keep = ~np.isnan(curve)
    if not np.isfinite(curve[keep]).any():
        return math.inf
    return float(library().rdp.compute_epsilon(orders()[keep], curve[keep], delta)[0])


# --- Renyi ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def renyi(event: Event, adjacency: Adjacency) -> Vector | None:
    """The Renyi divergence at each of `orders`."""
    twice = 2.0 if adjacency == "replace-one" else 1.0
    if isinstance(event, Correlated):
        return renyi(event.single, adjacency)
    if event.noise == 0:
        return np.full_like(orders(), np.inf)
    if isinstance(event, Laplace):
        return _library_curve(library().event.LaplaceDpEvent(event.noise / twice), adjacency)
    if isinstance(event, Gaussian):
        return _gaussian(event, adjacency, event.noise / twice)
    whole = np.ceil(orders())  # the bounds are for whole orders, and divergences grow with the order
    if isinstance(event.sampling, Poisson) and event.sampling.rate < 1:
        if adjacency == "replace-one":
            return None
        every = np.arange(2, int(whole.max()) + 1, dtype=np.float64)
        return _poisson(_whole_numbers(event, every, twice), event.sampling.rate, whole.astype(int))
    return _whole_numbers(event, whole, twice)


def _gaussian(event: Gaussian, adjacency: Adjacency, noise: float) -> Vector | None:
    plain: Vector = orders() / (2 * noise**2)
    if isinstance(event.sampling, Everyone):
        return plain
    inner = library().event.GaussianDpEvent(noise)
    if isinstance(event.sampling, Poisson):
        if adjacency == "replace-one":
            return None
        return _library_curve(library().event.PoissonSampledDpEvent(event.sampling.rate, inner), adjacency)
    fixed = event.sampling
    sampled = library().event.SampledWithoutReplacementDpEvent(fixed.population, fixed.cohort, inner)
    return np.minimum(
        _library_curve(sampled, adjacency), plain
    )  # its bound is above no sampling for large cohorts


def _library_curve(event: Any, adjacency: Adjacency) -> Vector:
    lib = library()
    relation = lib.neighbours.REPLACE_ONE if adjacency == "replace-one" else lib.neighbours.ADD_OR_REMOVE_ONE
    with _quiet():
        curve: Vector = lib.rdp.RdpAccountant(neighboring_relation=relation).compose(event).rdp
    return curve


def _whole_numbers(event: DiscreteGaussian | Skellam, order: Vector, twice: float) -> Vector:
    """The divergence of a sum of whole numbers at whole orders, without sampling."""
    l2 = twice * event.l2
    if isinstance(event, Skellam):  # Agarwal et al. 2021, theorem 3.5
        l1, variance = twice * event.l1, event.deviation**2
        extra = np.minimum(((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    else:
        variance = event.share**2 * event.shares
        extra = event.dimension * shares_gap(event.share, event.shares) * (2 * order - 1) / (order - 1)
    curve: Vector = order * l2**2 / (2 * variance) + extra
    return curve


def shares_gap(share: float, shares: int) -> float:
    """How far a sum of discrete Gaussians is from one of the same variance: max |log ratio| of a coordinate.

    Adding a share to k of them gives exp(-x^2 / 2 sigma^2) times a theta function of x, which by Poisson
    summation lies within 1 +- 2 e with e = sum_j exp(-2 pi^2 s^2 j^2), s^2 = share^2 k / (k + 1); normalising
    doubles the distance. With this, a divergence of order a is at most that of the discrete Gaussian plus gap (2
    a - 1) / (a - 1).   After Kairouz et al. 2021, section 4.
    """
    k = np.arange(1, shares, dtype=np.float64)
    spread = 2 * np.pi**2 * share**2 * k / (k + 1)
    e = sum(np.exp(-spread * j**2) for j in range(1, 9))
    if shares == 1:
        return 0.0
    return float(np.sum(np.log1p(2 * e) - np.log1p(-2 * e))) if np.max(e) < 0.5 else math.inf


def _poisson(curve: Vector, rate: float, wanted: Any) -> Vector:
    """A curve over the orders 2, 3, ... after Poisson sampling, at the whole orders `wanted`.

    For any mechanism, add-remove.   Zhu and Wang, ICML 2019, theorem 6.
    """
    log_binomial = library().special.gammaln
    here, there, found = math.log(rate), math.log1p(-rate), {}
    for a in np.unique(wanted).tolist():
        j = np.arange(3, a + 1, dtype=np.float64)
        choose = log_binomial(a + 1) - log_binomial(j + 1) - log_binomial(a - j + 1)
        terms = [
            (a - 1) * there + math.log1p(rate * (a - 1)),
            math.log(a * (a - 1) / 2) + 2 * here + (a - 2) * there + curve[0],
            *(math.log(3) + choose + (a - j) * there + j * here + (j - 1) * curve[1 : a - 1]),
        ]
        found[a] = float(np.logaddexp.reduce(terms)) / (a - 1)
    sampled: Vector = np.minimum(np.array([found[a] for a in wanted.tolist()]), curve[wanted - 2])
    return sampled


@contextmanager
def _quiet() -> Iterator[None]:
    """The library warns of orders that it leaves out; leaving them out is sound, and nobody can act on it."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


# --- privacy loss ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def loss(event: Event, adjacency: Adjacency, step: float) -> Any | None:
    """The privacy loss distribution, in steps, rounded to the safe side."""
    make, twice = library().pld, 2.0 if adjacency == "replace-one" else 1.0
    if isinstance(event, (DiscreteGaussian, Skellam)) or event.noise == 0:
        return None
    if isinstance(event, Laplace):
        return make.from_laplace_mechanism(event.noise / twice, value_discretization_interval=step)
    if (plain := shift({event: 1}, adjacency)) is not None:
        return make.from_gaussian_mechanism(1 / plain, value_discretization_interval=step)
    assert isinstance(event.sampling, Poisson)
    relation = library().neighbours
    return make.from_gaussian_mechanism(  # the library doubles for replace-one by itself, here
        event.noise,
        sampling_prob=event.sampling.rate,
        neighboring_relation=relation.REPLACE_ONE
        if adjacency == "replace-one"
        else relation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=step,
    )


def masses(found: Any, way: str) -> tuple[int, Vector, float]:
    """What a loss distribution is made of: its lowest cell, the chance of each cell from there on, that of no bound.

    For neighbours with one participant less, `way` "remove", or more, "add".
    """
    dense = getattr(found, f"_pmf_{way}").to_dense_pmf()  # the library shows them nowhere else
    return dense._lower_loss, np.asarray(dense._probs, np.float64), float(dense._infinity_mass)


# --- Gaussian, unsampled --------------------------------------------------------------------------------------------


def shift(events: Mapping[Event, int], adjacency: Adjacency) -> float | None:
    """How far a participant moves all of these events together, in deviations; None unless all are unsampled Gaussians.

    Fixed cohorts count as if all took part.
    """
    twice, total = 2.0 if adjacency == "replace-one" else 1.0, 0.0
    for each, count in events.items():
        event = each.single if isinstance(each, Correlated) else each
        sampled = isinstance(event.sampling, Poisson) and event.sampling.rate < 1
        if not isinstance(event, Gaussian) or sampled or event.noise == 0:
            return None
        total += count * (twice / event.noise) ** 2
    return math.sqrt(total)


def exact(moved: float, delta: float) -> float:
    """The epsilon at `delta` of normal noise that hides a shift by so many deviations.   Balle and Wang, ICML 2018"""
    phi = library().special.log_ndtr

    def kept(epsilon: float) -> bool:
        above = float(phi(moved / 2 - epsilon / moved))
        below = epsilon + float(phi(-moved / 2 - epsilon / moved))
        return below < above and above + math.log(-math.expm1(below - above)) <= math.log(delta)

    if kept(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not kept(high):
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return high
