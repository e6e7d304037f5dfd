"""Label skew: clients that differ in which classes they hold."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from atoll.data.division import (
    Division,
    Partitioner,
    cut,
    integer_shares,
    require,
    require_clients,
    required_labels,
)
from atoll.data.samples import IntArray
from atoll.seeds import rng

from .quantity import even_sizes

if TYPE_CHECKING:
    from atoll.data.dataset import Dataset

__all__ = ["Dirichlet", "DirichletClient", "ExtendedDirichlet", "Pathological", "Shards"]

Generator = np.random.Generator


def _by_class(labels: IntArray, classes: int, generator: Generator) -> list[IntArray]:
    """The rows of each class, shuffled: a cut through a class takes no account of the order of the file."""
    order = np.argsort(labels, kind="stable")
    return [generator.permutation(part) for part in cut(order, np.bincount(labels, minlength=classes))]


def _joined(parts: list[list[IntArray]]) -> list[IntArray]:
    nothing = np.zeros(0, dtype=np.int64)
    return [np.concatenate(part) if part else nothing for part in parts]


def _repair(parts: list[IntArray], minimum: int, generator: Generator) -> list[IntArray]:
    """Move random samples, one by one, from whoever is largest to the clients below the minimum.

    While a client is short of the minimum the largest one is above it, so donors never become short
    themselves.
    """
    short = [client for client, rows in enumerate(parts) if len(rows) < minimum]
    if not short:
        return parts
    heap = [(-len(rows), client) for client, rows in enumerate(parts)]
    heapq.heapify(heap)
    stacks: dict[int, list[int]] = {}
    for client in short:
        stack = stacks.setdefault(client, parts[client].tolist())
        while len(stack) < minimum:
            size, donor = heapq.heappop(heap)
            if donor not in stacks:
                stacks[donor] = generator.permutation(parts[donor]).tolist()
            stack.append(stacks[donor].pop())
            heapq.heappush(heap, (size + 1, donor))
    return [np.array(stacks.get(client, rows), dtype=np.int64) for client, rows in enumerate(parts)]


def _check_alpha(alpha: float, what: str) -> None:
    require(
        bool(np.isfinite(alpha)) and alpha > 0,
        f"{what}: alpha must be a positive number, not {alpha}",
        "0.1 is very uneven, 1 moderate, 100 nearly IID",
    )


@dataclass(frozen=True)
class Dirichlet(Partitioner):
    """Each class is cut among the clients in shares drawn from a symmetric Dirichlet.

    For every class c, p_c ~ Dir(alpha) over the clients, and client k gets the share p_ck of the class
    (Yurochkin et al., ICML 2019; NIID-Bench's "distribution-based label imbalance"). Not to be confused with
    `DirichletClient`, which draws a mixture of classes for every client. Large `alpha` approaches IID; as it
    goes to 0 each class goes to one client.

    `balance` stops giving to clients that already have their even share (samples / clients), class after
    class. Clients below `min_size` are filled up with random samples of the largest ones: the shares are
    drawn once and never rejected.
    """

    clients: int
    alpha: float
    min_size: int = 1
    balance: bool = False
    code: ClassVar[str] = "dirichlet"

    def divide(self, data: Dataset, seed: int) -> Division:
        labels, classes = required_labels(data, self.code)
        _check_alpha(self.alpha, self.code)
        require_clients(self.clients, len(labels), self.min_size, self.code)
        generator = rng(seed, "data.dirichlet")
        parts: list[list[IntArray]] = [[] for _ in range(self.clients)]
        sizes = np.zeros(self.clients, dtype=np.int64)
        for rows in _by_class(labels, classes, generator):
            shares = _dirichlet(generator, np.full(self.clients, self.alpha))
            if self.balance:
                open_to = sizes < len(labels) / self.clients
                shares = shares * open_to
                if shares.sum() <= 0:
                    shares = open_to.astype(np.float64)
            counts = integer_shares(shares, len(rows))
            sizes += counts
            for client, piece in enumerate(cut(rows, counts)):
                if len(piece):
                    parts[client].append(piece)
        return Division([np.sort(rows) for rows in _repair(_joined(parts), self.min_size, generator)])


def _dirichlet(generator: Generator, alphas: NDArray[np.float64]) -> NDArray[np.float64]:
    """One Dirichlet draw; where parameters vanish and the sampler underflows, its limit: all for one."""
    shares = generator.dirichlet(alphas)
    if not np.isfinite(shares).all() or shares.sum() <= 0:
        shares = np.zeros(len(alphas))
        shares[generator.choice(len(alphas), p=alphas / alphas.sum())] = 1.0
    return shares


def _mixture(
    generator: Generator, alphas: NDArray[np.float64], among: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """A Dirichlet draw over some of the classes; the others get nothing."""
    mixture = np.zeros(len(alphas))
    mixture[among] = _dirichlet(generator, alphas[among])
    return mixture


@dataclass(frozen=True)
class DirichletClient(Partitioner):
    """Clients of equal size with mixtures of classes of their own, q_k ~ Dir(alpha * p), p the overall one.

    Hsu et al., 2019, "Measuring the Effects of Non-Identical Data Distribution". Samples are drawn without
    replacement; when a class runs out, the rest of a client's draw follows its mixture over the classes that
    are left, or over a new one where those are gone too. All samples are used.
    """

    clients: int
    alpha: float
    code: ClassVar[str] = "dirichlet-client"

    def divide(self, data: Dataset, seed: int) -> Division:
        labels, classes = required_labels(data, self.code)
        _check_alpha(self.alpha, self.code)
        require_clients(self.clients, len(labels), 1, self.code)
        generator = rng(seed, "data.dirichlet-client")
        stock = _by_class(labels, classes, generator)
        left = np.array([len(rows) for rows in stock], dtype=np.int64)
        prior = left / left.sum()
        result = []
        for size in even_sizes(len(labels), self.clients):
            mixture = _mixture(generator, self.alpha * prior, left > 0)
            taken = np.zeros(classes, dtype=np.int64)
            while (missing := int(size - taken.sum())) > 0:  # every pass but the last empties a class
                weights = mixture * (left > taken)
                if weights.sum() <= 0:  # all that this client wants is gone
                    weights = _mixture(generator, self.alpha * prior, left > taken)
                taken = np.minimum(taken + generator.multinomial(missing, weights / weights.sum()), left)
            result.append(
                np.sort(
                    np.concatenate([stock[c][left[c] - taken[c] : left[c]] for c in np.flatnonzero(taken)])
                )
            )
            left -= taken
        return Division(result)


def _deal_classes(
    labels: IntArray, classes: int, clients: int, k: int, generator: Generator, what: str
) -> list[IntArray]:
    """`k` different classes per client, as evenly as can be: per class, the clients that hold it."""
    present = np.flatnonzero(np.bincount(labels, minlength=classes))
    require(clients >= 1, f"{what}: clients must be at least 1, not {clients}", "choose a positive number")
    require(
        1 <= k <= len(present),
        f"{what}: k must lie in 1..{len(present)}, the number of classes with samples, not {k}",
        "k is the number of classes per client",
    )
    used = np.zeros(len(present), dtype=np.int64)
    holders: list[list[int]] = [[] for _ in range(classes)]
    for client in range(clients):
        chosen = np.lexsort((generator.random(len(present)), used))[:k]
        used[chosen] += 1
        for index in chosen:
            holders[int(present[index])].append(client)
    counts = np.bincount(labels, minlength=classes)
    for label, who in enumerate(holders):
        require(
            len(who) <= counts[label],
            f"{what}: class {label} has {counts[label]} samples for {len(who)} clients",
            "take fewer clients or fewer classes per client",
        )
    return [generator.permutation(np.array(who, dtype=np.int64)) for who in holders]


@dataclass(frozen=True)
class ExtendedDirichlet(Partitioner):
    """`k` classes per client, each cut among its holders in Dirichlet(alpha) shares (arXiv 2311.03154).

    Every holder gets at least one sample of each of its classes. Classes that no client holds (where
    clients * k is less than the number of classes) stay unused.
    """

    clients: int
    k: int
    alpha: float
    code: ClassVar[str] = "extended-dirichlet"

    def divide(self, data: Dataset, seed: int) -> Division:
        labels, classes = required_labels(data, self.code)
        _check_alpha(self.alpha, self.code)
        generator = rng(seed, "data.extended-dirichlet")
        holders = _deal_classes(labels, classes, self.clients, self.k, generator, self.code)
        weights = [
            _dirichlet(generator, np.full(len(who), self.alpha)) if len(who) else np.zeros(0)
            for who in holders
        ]
        return _deal(labels, classes, self.clients, holders, weights, generator)


@dataclass(frozen=True)
class Pathological(Partitioner):
    """`k` classes per client, in equal shares, or shares in proportion to U(0.5 - spread, 0.5 + spread).

    ``spread=0.1`` is the U(0.4, 0.6) of pFedHN's benchmark (Shamsian et al., ICML 2021). Classes that no
    client holds stay unused.
    """

    clients: int
    k: int = 2
    spread: float = 0.0
    code: ClassVar[str] = "pathological"

    def divide(self, data: Dataset, seed: int) -> Division:
        labels, classes = required_labels(data, self.code)
        require(
            0 <= self.spread < 0.5,
            f"pathological: spread must lie in [0, 0.5), not {self.spread}",
            "0.1 gives shares in proportion to U(0.4, 0.6)",
        )
        generator = rng(seed, "data.pathological")
        holders = _deal_classes(labels, classes, self.clients, self.k, generator, self.code)
        weights = [generator.uniform(0.5 - self.spread, 0.5 + self.spread, len(who)) for who in holders]
        return _deal(labels, classes, self.clients, holders, weights, generator)


def _deal(
    labels: IntArray,
    classes: int,
    clients: int,
    holders: list[IntArray],
    weights: list[NDArray[np.float64]],
    generator: Generator,
) -> Division:
    """Cut each class among its holders; one sample each first, the rest by weight."""
    parts: list[list[IntArray]] = [[] for _ in range(clients)]
    for rows, who, weight in zip(_by_class(labels, classes, generator), holders, weights, strict=True):
        if len(who):
            for client, piece in zip(
                who, cut(rows, 1 + integer_shares(weight, len(rows) - len(who))), strict=True
            ):
                parts[int(client)].append(piece)
    return Division([np.sort(rows) for rows in _joined(parts)])


@dataclass(frozen=True)
class Shards(Partitioner):
    """Sort by label, cut into clients * per_client shards, deal each client `per_client` of them.

    McMahan et al., AISTATS 2017 (100 clients, two shards of 300 MNIST digits each). Samples are shuffled
    inside each class before the cut, so that shards of one class differ only by chance. Shard sizes differ by
    at most one.
    """

    clients: int
    per_client: int = 2
    code: ClassVar[str] = "shards"

    def divide(self, data: Dataset, seed: int) -> Division:
        labels, classes = required_labels(data, self.code)
        require(
            self.per_client >= 1,
            f"shards: per_client must be at least 1, not {self.per_client}",
            "2 is usual",
        )
        require_clients(self.clients, len(labels), 1, self.code)
        shards = self.clients * self.per_client
        require(
            shards <= len(labels),
            f"shards: {self.clients} clients x {self.per_client} shards is more than {len(labels)} samples",
            "take fewer clients or fewer shards",
        )
        generator = rng(seed, "data.shards")
        pieces = cut(np.concatenate(_by_class(labels, classes, generator)), even_sizes(len(labels), shards))
        deal = generator.permutation(shards).reshape(self.clients, self.per_client)
        return Division([np.sort(np.concatenate([pieces[shard] for shard in own])) for own in deal])
