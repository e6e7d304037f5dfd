"""Which clients take part in which rounds: some never do, some come later, some leave."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from atoll import seeds, spec
from atoll.data import FederatedData
from atoll.errors import ConfigError

__all__ = ["Membership", "Schedule"]

Schedule = str | Mapping[int | str, int]
"""Clients and a round each: "6@20, 0.1@40" (so many, or a share, drawn by the seed), or {client: round}."""


class Membership:
    """Who is there in which round.

    Args:
        data: the clients.
        seed: draws the clients that are not named.
        newcomers: how many clients (or which share) never take part.
        joins: clients that are there from this round on, and the round.
        leaves: clients that are gone from this round on, and the round.

    Raises ConfigError if these contradict each other, or leave a round without clients.
    """

    def __init__(
        self,
        data: FederatedData,
        seed: int,
        newcomers: int | float = 0,
        joins: Schedule | None = None,
        leaves: Schedule | None = None,
    ) -> None:
        self.clients = len(data)
        self.joins, self.leaves = _named("joins", joins, data), _named("leaves", leaves, data)
        taken = {*self.joins, *self.leaves}
        self.newcomers = _newcomers(newcomers, self.clients, seed, taken)
        self._never = frozenset(self.newcomers)
        taken |= self._never
        for name, given, found in (("joins", joins, self.joins), ("leaves", leaves, self.leaves)):
            if isinstance(given, str):
                found |= _drawn(name, given, self.clients, seed, taken)
                taken |= {*found}
        for client in self.joins.keys() & self.leaves.keys():
            if self.leaves[client] <= self.joins[client]:
                raise ConfigError(
                    f"client {data.names[client]!r} leaves in round {self.leaves[client]}, before it joins"
                    f" in round {self.joins[client]}",
                    hint="a client that has left cannot come again",
                )
        self._changes = sorted({*self.joins.values(), *self.leaves.values()})
        self._known: tuple[int, NDArray[np.int64] | int] | None = None
        for round in (1, *self._changes):
            if len(self.absent(round)) == self.clients:
                raise ConfigError(f"joins, leaves: nobody is there in round {round}")

    def there(self, client: int, round: int) -> bool:
        """Whether this client may take part in that round."""
        in_time = self.joins.get(client, 0) <= round < self.leaves.get(client, round + 1)
        return in_time and client not in self._never

    def absent(self, round: int) -> list[int]:
        """Clients that take no part in that round, ascending."""
        of_interest = self._never | self.joins.keys() | self.leaves.keys()
        return sorted(client for client in of_interest if not self.there(client, round))

    def present(self, round: int) -> NDArray[np.int64] | int:
        """Clients that may take part in that round, ascending; their number where that is everybody."""
        era = bisect_right(self._changes, round)
        if self._known is None or self._known[0] != era:
            absent = self.absent(round)
            self._known = era, np.setdiff1d(np.arange(self.clients), absent) if absent else self.clients
        return self._known[1]

    def leaving(self, round: int) -> list[int]:
        """Clients that were there and are not from this round on."""
        return sorted(client for client, at in self.leaves.items() if at == round)


def _named(name: str, given: Schedule | None, data: FederatedData) -> dict[int, int]:
    """The clients and rounds of a mapping."""
    if given is None or isinstance(given, str):
        return {}
    found = {data.position(client): round for client, round in given.items()}
    for client, round in found.items():
        _check_round(name, f"{data.names[client]!r}: {round}", round)
    return found


def _drawn(name: str, text: str, clients: int, seed: int, taken: Collection[int]) -> dict[int, int]:
    """So many clients at a round, for each part of the text, out of those that are not taken."""
    found: dict[int, int] = {}
    free = [client for client in range(clients) if client not in taken]
    order = seeds.rng(seed, name).permutation(free)
    parts = spec.pairs(text, f"{name} =", "@", spec.amount("clients"), spec.whole("round"), "6@20")
    for count, round in parts:
        _check_round(name, repr(f"{count}@{round}"), round)
        many = count if isinstance(count, int) else max(1, int(count * clients + 0.5))
        if len(found) + many > len(order):
            raise ConfigError(
                f"{name} = {text!r}, but only {len(order)} of the {clients} clients do not come or go otherwise"
            )
        found |= {int(client): round for client in order[len(found) : len(found) + many]}
    return found


def _check_round(name: str, what: str, round: int) -> None:
    if round < 2:
        raise ConfigError(f"{name}: {what} is not possible, the first round in which somebody can is 2")


def _newcomers(amount: int | float, clients: int, seed: int, taken: Collection[int]) -> list[int]:
    """Which clients never take part in a round."""
    count = round(amount * clients) if isinstance(amount, float) and amount < 1 else int(amount)
    if not 0 <= count < clients - len(taken) or (count != amount and not 0 <= amount < 1):
        raise ConfigError(
            f"newcomers = {amount}, but it is a number of the {clients} clients, or a share between 0 and 1",
            hint="at least one client must take part",
        )
    if not count:
        return []
    free = [client for client in range(clients) if client not in taken] if taken else clients
    chosen = seeds.rng(seed, "newcomers").choice(free, count, replace=False)
    return sorted(int(client) for client in chosen)
