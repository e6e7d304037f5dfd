"""Which clients take part in which rounds: some never do, some come later, some leave."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll import seeds, spec
from atoll.data import FederatedData
from atoll.errors import ConfigError, DataError
from atoll.rounds.comings import Comings, Rate
from atoll.rounds.durations import seconds

__all__ = ["Membership", "Schedule"]

Schedule = str | Mapping[int | str, int | str]
"""Clients and a round each: "6@20, 0.1@40" (so many, or a share, drawn by the seed), or {client: round}.

On the virtual clock also a time each, "6@3600s" or {client: "1h"}; a stream of clients, "rate:0.01" a virtual second;
or a CSV or JSON file with a row for each client and its seconds in the column `joins` or `leaves`.
"""

_STREAM = {
    "rate": (
        spec.number("rate", above=0, below=float("inf")),
        replace(spec.amount("clients"), optional=True),
    )
}


class Membership:
    """Who is there in which round, and at which virtual time where that matters.

    Args:
        data: the clients.
        seed: draws the clients that are not named.
        newcomers: how many clients (or which share) never take part.
        joins: clients that are there from this round (or time) on.
        leaves: clients that are gone from this round (or time) on.

    `joins` and `leaves` are then those of rounds, by client. Times are virtual seconds; without a clock they are 0.
    Raises ConfigError if these contradict each other, or leave a round without clients, DataError for a file.
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
        said = {"joins": _named("joins", joins, data), "leaves": _named("leaves", leaves, data)}
        taken = {client for each in said.values() for client in (*each.rounds, *each.times)}
        self.newcomers = _newcomers(newcomers, self.clients, seed, taken)
        self._never = frozenset(self.newcomers)
        taken |= self._never
        for name, given in (("joins", joins), ("leaves", leaves)):
            if isinstance(given, str) and not _is_file(given) and not _is_stream(given):
                drawn = _drawn(name, given, self.clients, seed, taken)
                said[name] = _When({**said[name].rounds, **drawn.rounds}, {**said[name].times, **drawn.times})
                taken |= {*drawn.rounds, *drawn.times}
        self.joins, self.leaves = said["joins"].rounds, said["leaves"].rounds
        _check_order(self.joins, self.leaves, data)
        _check_order(said["joins"].times, said["leaves"].times, data)
        self.comings = _comings(self.clients, seed, said["joins"], said["leaves"], joins, leaves, taken)
        self.stated: dict[str, Any] = {
            f"{name} by the clock": sorted(each.times.items()) or given
            for name, each, given in (("joins", said["joins"], joins), ("leaves", said["leaves"], leaves))
            if each.times or _is_stream(given)
        }
        """What is said of virtual times, as plain values."""
        self._changes = sorted({*self.joins.values(), *self.leaves.values()})
        self._known: tuple[object, NDArray[np.int64] | int] | None = None
        for round in (1, *self._changes):
            if len(self.absent(round)) == self.clients:
                raise ConfigError(f"joins, leaves: nobody is there in round {round}")

    def there(self, client: int, round: int, time: float = 0.0) -> bool:
        """Whether this client may take part in that round, which begins at that time."""
        in_time = self.joins.get(client, 0) <= round < self.leaves.get(client, round + 1)
        if self.comings is not None and in_time:
            self.comings.era(time)
            in_time = bool(self.comings.comes[client] <= time < self.comings.goes[client])
        return in_time and client not in self._never

    def absent(self, round: int) -> list[int]:
        """Clients that take no part in that round, ascending, whatever the time."""
        of_interest = self._never | self.joins.keys() | self.leaves.keys()
        return sorted(
            client
            for client in of_interest
            if client in self._never
            or not self.joins.get(client, 0) <= round < self.leaves.get(client, round + 1)
        )

    def present(self, round: int, time: float = 0.0) -> NDArray[np.int64] | int:
        """Clients that may take part in that round at that time, ascending; their number where that is everybody."""
        era = bisect_right(self._changes, round), self.comings and self.comings.era(time)
        if self._known is None or self._known[0] != era:
            absent = self.absent(round)
            if self.comings is None:
                found = np.setdiff1d(np.arange(self.clients), absent) if absent else self.clients
            else:
                here = self.comings.there(time)
                here[absent] = False
                found = np.flatnonzero(here) if not here.all() else self.clients
            self._known = era, found
        return self._known[1]

    def leaving(self, round: int, since: float = 0.0, until: float = 0.0) -> list[int]:
        """Clients that were there and are not from this round on, or left after the one time and up to the other."""
        gone = [client for client, at in self.leaves.items() if at == round]
        return sorted([*gone, *(self.comings.left(since, until) if self.comings is not None else ())])

    def moved(self, since: float, until: float) -> tuple[list[int], list[int]]:
        """(who has come, who has left) by the clock after the one time and up to the other, ascending."""
        return (
            ([], [])
            if self.comings is None
            else (self.comings.came(since, until), self.comings.left(since, until))
        )

    def departs(self, clients: NDArray[np.int64], until: float) -> NDArray[np.float64]:
        """When each of these leaves by the clock, as far as it does so up to that time; inf otherwise."""
        return np.full(len(clients), np.inf) if self.comings is None else self.comings.departs(clients, until)

    def arrival(self, time: float) -> float:
        """When the next client comes by the clock; inf: nobody will."""
        return float("inf") if self.comings is None else self.comings.next(time)


class _When(NamedTuple):
    """Clients and their rounds, clients and their virtual seconds."""

    rounds: dict[int, int]
    times: dict[int, float]


def _is_stream(given: Schedule | None) -> bool:
    return isinstance(given, str) and given.partition(":")[0].strip() == "rate"


def _is_file(given: Schedule | None) -> bool:
    return isinstance(given, str) and given.strip().endswith((".csv", ".json"))


def _comings(
    clients: int,
    seed: int,
    joins: _When,
    leaves: _When,
    given_joins: Schedule | None,
    given_leaves: Schedule | None,
    taken: Collection[int],
) -> Comings | None:
    """What happens by the clock; None where nothing does."""
    coming, going = _stream("joins", given_joins), _stream("leaves", given_leaves)
    if not (joins.times or leaves.times or coming or going):
        return None
    pool = np.setdiff1d(np.arange(clients), np.array([*taken], np.int64)) if coming or going else None
    return Comings(clients, seed, joins.times, leaves.times, coming, going, pool)


def _stream(name: str, given: Schedule | None) -> Rate | None:
    """A text such as "rate:0.01" or "rate:0.01,50"; None for what is none."""
    if not isinstance(given, str) or not _is_stream(given):
        return None
    found = spec.parse(given, f"{name} =").read(_STREAM)
    return Rate(found["rate"], found.get("clients"))


def _named(name: str, given: Schedule | None, data: FederatedData) -> _When:
    """The clients of a mapping, or of a file, and when."""
    rounds: dict[int, int] = {}
    times: dict[int, float] = {}
    if isinstance(given, str) and _is_file(given):
        return _When({}, _file(name, given, data))
    if given is None or isinstance(given, str):
        return _When({}, {})
    for who, at in given.items():
        client, what = data.position(who), f"{data.names[data.position(who)]!r}: {at}"
        time = _time(name, what, at) if isinstance(at, str) else None
        if time is not None:
            times[client] = time
        elif isinstance(at, str):
            raise ConfigError(f"{name}: {what} is no time", hint='write a round, or a time such as "3600s"')
        else:
            _check_round(name, what, at)
            rounds[client] = at
    return _When(rounds, times)


def _file(name: str, path: str, data: FederatedData) -> dict[int, float]:
    """The column `joins` or `leaves` of a file with a row for each client; empty where a client does not."""
    from atoll.clock.tables import read

    rows = read(Path(path.strip()).expanduser())
    if rows.ids is None or name not in rows.columns:
        raise DataError(
            f"{rows.source}: column {'client' if rows.ids is None else name!r} is missing",
            hint=f"write a row for each client, with virtual seconds in the column {name}",
        )
    positions = {str(client): at for at, client in enumerate(data.names)}
    found: dict[int, float] = {}
    for row, (client, value) in enumerate(zip(rows.ids, rows.columns[name], strict=True)):
        if client not in positions:
            rows.refuse(row, f"there is no client {client!r}")
        if value is None or value == "":
            continue
        try:
            time = seconds(str(value))
            time = float(value) if time is None else time
        except ValueError:
            time = -1.0
        if not 0 <= time < float("inf") or (name == "leaves" and time == 0):
            rows.refuse(row, f"{name} = {value!r} is not a time", "write virtual seconds, or 2h")
        if name == "leaves" or time:
            found[positions[client]] = time
    return found


def _drawn(name: str, text: str, clients: int, seed: int, taken: Collection[int]) -> _When:
    """So many clients at a round or a time, for each part of the text, out of those that are not taken."""
    found: dict[int, int | float] = {}
    free = [client for client in range(clients) if client not in taken]
    order = seeds.rng(seed, name).permutation(free)
    parts = spec.pairs(text, f"{name} =", "@", spec.amount("clients"), _AT, "6@20")
    for count, at in parts:
        if isinstance(at, int):
            _check_round(name, repr(f"{count}@{at}"), at)
        else:
            _check_time(name, repr(f"{count}@{at:g}s"), at)
        many = count if isinstance(count, int) else max(1, int(count * clients + 0.5))
        if len(found) + many > len(order):
            raise ConfigError(
                f"{name} = {text!r}, but only {len(order)} of the {clients} clients do not come or go otherwise"
            )
        found |= {int(client): at for client in order[len(found) : len(found) + many]}
    return _When(
        {client: at for client, at in found.items() if isinstance(at, int)},
        {client: at for client, at in found.items() if isinstance(at, float)},
    )


def _at(text: str) -> int | float:
    """A round, or seconds where a unit is there."""
    found = seconds(text)
    return int(text) if found is None else found


_AT = spec.Parameter("round", "a whole number, nor a time such as 3600s", _at)


def _time(name: str, what: str, text: str) -> float | None:
    try:
        found = seconds(text)
    except ValueError:
        return None
    if found is not None:
        _check_time(name, what, found)
    return found


def _check_time(name: str, what: str, time: float) -> None:
    if time <= 0:
        raise ConfigError(f"{name}: {what} is not possible, somebody can after the start")


def _check_round(name: str, what: str, round: int) -> None:
    if round < 2:
        raise ConfigError(f"{name}: {what} is not possible, the first round in which somebody can is 2")


def _check_order(joins: Mapping[int, float], leaves: Mapping[int, float], data: FederatedData) -> None:
    """Nobody leaves before it has come."""
    for client in joins.keys() & leaves.keys():
        first, last = joins[client], leaves[client]
        if last <= first:
            when = "in round {}" if isinstance(first, int) else "after {:g} s"
            raise ConfigError(
                f"client {data.names[client]!r} leaves {when.format(last)}, before it joins {when.format(first)}",
                hint="a client that has left cannot come again",
            )


def _newcomers(amount: int | float, clients: int, seed: int, taken: Collection[int]) -> list[int]:
    """Which clients never take part in a round."""
    count = round(amount * clients) if isinstance(amount, float) and amount < 1 else int(amount)
    if not amount:
        return []
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
