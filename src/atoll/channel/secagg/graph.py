"""Who shares masks with whom: a k-regular graph, and how many neighbours are enough.   Bell et al., CCS 2020

Clients stand on a circle in an order that public randomness gives, and are neighbours of the k/2 next to them on
either side. So the neighbours of each are a uniform sample, and hypergeometric tails say how many of them may be
corrupt or lost. With few clients everybody is everybody's neighbour.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.errors import ConfigError

__all__ = ["COMPLETE", "Graph", "Plan", "plan", "regular"]

COMPLETE = 64
"""Up to so many clients the graph is complete."""

PRIVACY, CORRECTNESS = 40, 30
"""An attempt fails to hide an update with probability below 2^-40, and fails to end for want of shares below 2^-30."""


@dataclass(frozen=True)
class Graph:
    """The neighbours of clients 0 .. n - 1.

    Args:
        n: clients.
        degree: n - 1 for the complete graph, else even and less.
        beacon: public randomness, from which the order on the circle follows; unused where the graph is complete.
    """

    n: int
    degree: int
    beacon: bytes = b""

    @cached_property
    def _circle(self) -> NDArray[np.int64]:
        seed = b"atoll secagg graph" + self.n.to_bytes(4, "big") + self.beacon
        keys = np.frombuffer(hashlib.shake_256(seed).digest(8 * self.n), dtype="<u8")
        return np.argsort(keys, kind="stable").astype(np.int64)

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        return np.argsort(self._circle)

    def neighbours(self, client: int) -> tuple[int, ...]:
        """The neighbours of a client, in ascending order, itself not among them."""
        if self.degree == self.n - 1:
            return tuple(other for other in range(self.n) if other != client)
        half = self.degree // 2
        offsets = np.concatenate([np.arange(-half, 0), np.arange(1, half + 1)])
        return tuple(sorted(self._circle[(self._places[client] + offsets) % self.n].tolist()))

    def holders(self, client: int) -> tuple[int, ...]:
        """Who holds shares of a client's secrets: its neighbours and itself, in ascending order.

        The share with number x lies with the x-th of them.
        """
        return tuple(sorted((*self.neighbours(client), client)))


class Plan(NamedTuple):
    """How many neighbours each client has, and how many shares give back a secret."""

    degree: int
    threshold: int


def plan(n: int, gamma: float = 0.05, delta: float = 0.05, active: bool = False) -> Plan:
    """A graph and a threshold for n clients, of which a share `gamma` may be corrupt and a share `delta` may drop out.

    The complete graph up to 64 clients, else `regular`. Against an active server more than two thirds of a client's
    holders must answer, so that it cannot get different answers from two halves of them.

    Raises ConfigError for shares outside [0, 1), or where no threshold protects against the one and survives the other.
    """
    _check(n, gamma, delta)
    if n <= COMPLETE:
        least, most = max(2, math.floor(gamma * n) + 1), n - math.floor(delta * n)
        wanted = 2 * n // 3 + 1 if active else n // 2 + 1
        if least > most or (active and wanted > most):
            raise _none(n, gamma, delta, active)
        return Plan(n - 1, wanted if active else min(max(wanted, least), most))
    return regular(n, gamma, delta, active)


def regular(n: int, gamma: float, delta: float, active: bool = False) -> Plan:
    """The smallest even degree, and the smallest threshold with it, for a k-regular graph on n clients.

    Of a client's k neighbours, drawn without repetition from the n - 1 others: t or more are corrupt with probability
    below 2^-40 / n, and fewer than t remain with probability below 2^-30 / n. Two gaps of k/2 clients in the circle,
    which alone can cut it in two, have probability below 2^-40. Sums are exact. (That a client holds a share of its own
    secret does not help the corrupt, and is not counted on.)
    """
    _check(n, gamma, delta)
    corrupt, lost = math.floor(gamma * n + 1e-9), math.floor(delta * n + 1e-9)
    for degree in range(2, n - 1, 2):
        whole = math.comb(n - 1, degree)
        bad = _counts(n - 1, corrupt, degree)
        tail, threshold = 0, degree + 1
        while threshold > 0 and n * (tail + bad[threshold - 1]) << PRIVACY < whole:
            threshold -= 1
            tail += bad[threshold]
        threshold = max(threshold, 2, 2 * (degree + 1) // 3 + 1 if active else 0)
        if threshold > degree:
            continue
        short = sum(_counts(n - 1, lost, degree)[degree - threshold + 1 :])
        cut = n * n * math.comb(min(n, corrupt + lost), degree) << PRIVACY
        if n * short << CORRECTNESS < whole and cut < 2 * math.comb(n, degree):
            return Plan(degree, threshold)
    raise _none(n, gamma, delta, active)


def _counts(n: int, marked: int, drawn: int) -> list[int]:
    """In how many ways i of `marked` are among `drawn` of n, for i = 0 .. drawn. Each follows from the one before."""
    counts = [0] * (drawn + 1)
    least = max(0, drawn - (n - marked))
    counts[least] = way = math.comb(marked, least) * math.comb(n - marked, drawn - least)
    for i in range(least, min(drawn, marked)):
        way = way * (marked - i) * (drawn - i) // ((i + 1) * (n - marked - drawn + i + 1))
        counts[i + 1] = way
    return counts


def _check(n: int, gamma: float, delta: float) -> None:
    if n < 2 or not (0 <= gamma < 1 and 0 <= delta < 1):
        raise ConfigError(f"no plan for {n} clients, a share {gamma} of them corrupt and a share {delta} lost",
                          hint="two clients or more, and shares from 0 to below 1")  # fmt: skip


def _none(n: int, gamma: float, delta: float, active: bool) -> ConfigError:
    which = "an active server" if active else "a curious server"
    return ConfigError(
        f"no threshold protects {n} clients from {which} with a share {gamma} corrupt and survives {delta} lost",
        hint="expect fewer corrupt clients or fewer losses",
    )
