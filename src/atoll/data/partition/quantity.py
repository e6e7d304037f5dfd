"""Clients that differ in how much they have, and not in what: IID draws of unequal sizes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from atoll.data.division import Division, Partitioner, cut, integer_shares, require, require_clients
from atoll.data.samples import IntArray
from atoll.seeds import rng

if TYPE_CHECKING:
    from atoll.data.dataset import Dataset

__all__ = ["IID", "LogNormal", "PowerLaw", "QuantityDirichlet", "Sizes", "even_sizes"]


def even_sizes(samples: int, clients: int) -> IntArray:
    """Sizes that differ by at most one and sum to `samples`."""
    sizes = np.full(clients, samples // clients, dtype=np.int64)
    sizes[: samples % clients] += 1
    return sizes


@dataclass(frozen=True)
class IID(Partitioner):
    """A uniform random division. Sizes differ by at most one, or are `sizes` (may leave samples unused)."""

    clients: int
    sizes: Sequence[int] | None = None
    code: ClassVar[str] = "iid"

    def __str__(self) -> str:
        return self.code if self.sizes is None else "iid, given sizes"

    def divide(self, data: Dataset, seed: int) -> Division:
        total = data.train.count
        require_clients(self.clients, total, 1, "iid")
        sizes = even_sizes(total, self.clients)
        if self.sizes is not None:
            sizes = np.asarray(self.sizes, dtype=np.int64)
            require(
                len(sizes) == self.clients and int(sizes.min(initial=1)) >= 1 and int(sizes.sum()) <= total,
                f"iid: sizes must be {self.clients} positive numbers with a sum of at most {total}",
                f"there are {len(sizes)} with the sum {int(sizes.sum())}",
            )
        order = rng(seed, "data.iid").permutation(total)
        return Division([np.sort(part) for part in cut(order, sizes)])


class _Quantity(Partitioner):
    """IID draws whose sizes follow random or fixed weights; each client first gets `min_size`."""

    clients: int
    min_size: int

    @abstractmethod
    def weights(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """One positive weight per client."""

    def divide(self, data: Dataset, seed: int) -> Division:
        total = data.train.count
        require_clients(self.clients, total, self.min_size, self.code)
        generator = rng(seed, f"data.{self.code}")
        weights = self.weights(generator)
        sizes = self.min_size + integer_shares(weights, total - self.clients * self.min_size)
        return Division([np.sort(part) for part in cut(generator.permutation(total), sizes)])


@dataclass(frozen=True)
class QuantityDirichlet(_Quantity):
    """Sizes in proportion to a symmetric Dirichlet draw: with small `alpha` a few clients have nearly all."""

    clients: int
    alpha: float
    min_size: int = 1
    code: ClassVar[str] = "quantity-dirichlet"

    def weights(self, generator: np.random.Generator) -> NDArray[np.float64]:
        require(self.alpha > 0, f"{self.code}: alpha must be positive, not {self.alpha}", "0.5 is usual")
        return generator.dirichlet(np.full(self.clients, self.alpha))


@dataclass(frozen=True)
class LogNormal(_Quantity):
    """Sizes in proportion to exp(sigma * z), z standard normal."""

    clients: int
    sigma: float
    min_size: int = 1
    code: ClassVar[str] = "lognormal"

    def weights(self, generator: np.random.Generator) -> NDArray[np.float64]:
        require(self.sigma >= 0, f"{self.code}: sigma must not be negative: {self.sigma}", "0 is equal sizes")
        z = self.sigma * generator.standard_normal(self.clients)
        weights: NDArray[np.float64] = np.exp(z - z.max())
        return weights


@dataclass(frozen=True)
class PowerLaw(_Quantity):
    """Sizes in proportion to rank ** -exponent; which client has which rank is random."""

    clients: int
    exponent: float = 1.5
    min_size: int = 1
    code: ClassVar[str] = "power-law"

    def weights(self, generator: np.random.Generator) -> NDArray[np.float64]:
        require(self.exponent >= 0, f"{self.code}: exponent must not be negative: {self.exponent}", "try 1.5")
        ranks = generator.permutation(self.clients) + 1.0
        weights: NDArray[np.float64] = np.power(ranks, -self.exponent)
        return weights


@dataclass(frozen=True)
class Sizes(_Quantity):
    """Sizes that grow with the client's number k: in proportion to k + 1, (k + 1) ** 2 or exp(k)."""

    clients: int
    growth: Literal["linear", "square", "exponential"] = "linear"
    min_size: int = 1
    code: ClassVar[str] = "sizes"

    def weights(self, generator: np.random.Generator) -> NDArray[np.float64]:
        require(
            self.growth in ("linear", "square", "exponential"),
            f"sizes: there is no growth {self.growth!r}",
            "choose linear, square or exponential",
        )
        k = np.arange(self.clients, dtype=np.float64)
        if self.growth == "exponential":
            weights: NDArray[np.float64] = np.exp(k - k[-1])
            return weights
        return (k + 1) ** (1 if self.growth == "linear" else 2)
