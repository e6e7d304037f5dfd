"""How clients are drawn of whom some are not there: evenly, by weights, in an order, by size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoll.errors import ConfigError

from .contract import Ask, Bools, Floats, Ints

__all__ = ["by_size", "changed", "evenly", "first", "race"]

There = Callable[[Ints], Bools]


def evenly(rng: np.random.Generator, among: Ints | int, count: int, there: There) -> Ints:
    """`count` of those that are there, each set of them as likely, in the order in which they were drawn.

    Looks at `count` clients, and at four times as many while too few of them are there. Every draw is a new one, and
    whether it is one too many depends on how many of it are there, not on who; so nobody is preferred.
    """
    total = among if isinstance(among, int) else len(among)
    wanted = look = min(count, total)
    while look:
        drawn: Ints = rng.choice(among, look, replace=False)
        found = drawn[there(drawn)]
        if len(found) >= wanted or look == total:
            return found[:wanted]
        look = min(4 * look, total)
    return np.empty(0, np.int64)


def first(clients: Ints, keys: Floats, count: int, there: There) -> Ints:
    """The `count` clients with the least keys of those that are there, the least first. Looks at few, as `evenly`."""
    look = min(count, len(clients))
    while look:
        best = np.argpartition(keys, look - 1)[:look]
        found = clients[best[np.argsort(keys[best], kind="stable")]]
        found = found[there(found)]
        if len(found) >= count or look == len(clients):
            return found[:count]
        look = min(4 * look, len(clients))
    return np.empty(0, np.int64)


def race(rng: np.random.Generator, clients: Ints, weights: Any, count: int, there: There) -> Ints:
    """`count` of those that are there: one after the other, each with a chance in proportion to its weight.

    Client k arrives after an exponential time of rate w_k, and the first to arrive are drawn: the scheme of Efraimidis
    and Spirakis (Information Processing Letters 97, 2006, algorithm A), whose key u^(1/w) is exp(-time). Weight 0
    never arrives.
    """
    runs = weights > 0
    return first(clients[runs], rng.standard_exponential(int(runs.sum())) / weights[runs], count, there)


def by_size(ask: Ask, rng: np.random.Generator, count: int, most: int | None) -> Ints:
    """`count` of those that are there, as `race` has it with the training samples as weights.

    Without `most` everybody's size is looked at. With it (no client has more samples) only as many as needed: clients
    are proposed evenly and taken with probability size / most, unless they were before, which comes to the same.
    """
    if most is None:
        clients = ask.everyone()
        return race(rng, clients, ask.size(clients), count, ask.there)
    total = ask.present if isinstance(ask.present, int) else len(ask.present)
    taken: dict[int, None] = {}
    proposed = 0
    while len(taken) < count and proposed < total:
        places = rng.integers(0, total, 4 * (count - len(taken)))
        draws = rng.random(len(places)) * most
        proposed += len(places)
        clients = places if isinstance(ask.present, int) else ask.present[places]
        here = ask.there(clients)
        clients, draws = clients[here], draws[here]
        sizes = ask.size(clients)
        if (sizes > most).any():
            k = int(np.argmax(sizes > most))
            raise ConfigError(
                f"the client at position {clients[k]} has {sizes[k]} samples, and most = {most}",
                hint="most is the largest size of a client, or a number above it",
            )
        taken |= dict.fromkeys(clients[draws < sizes].tolist())
    found = np.array([*taken], np.int64)[:count]
    if len(found) == count:
        return found
    left = np.setdiff1d(ask.everyone(), found)  # so many are wanted that proposals hardly hit anybody new
    return np.concatenate([found, race(rng, left, ask.size(left), count - len(found), ask.there)])


def changed(known: Tensor, clients: Ints, values: Any) -> Tensor:
    """A copy with other values for these clients; the last one counts where a client stands twice."""
    copy = known.numpy().copy()
    copy[clients] = values
    return torch.from_numpy(copy)
