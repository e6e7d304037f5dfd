"""What a choice of clients is asked, what it answers, and what it learns from a round."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll import seeds
from atoll.tensors import Record

__all__ = ["Ask", "Bools", "Choice", "Chosen", "Floats", "Ints", "Learned"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a choice may look at. Clients are positions, in int64 arrays [K] of any length; answers are arrays [K].

    `number` is the round, from 1; `nth` counts further draws for one round, from 0; `count` are wanted out of
    `present`, which are positions, ascending, or a number of clients where that is everybody. The four functions cost
    something for each client that they are asked about, and a population may have millions: `there` (who can be asked
    now), `size` (training samples), `seconds` (what an order is expected to take; 0 where nothing is known of devices).
    """

    number: int
    nth: int
    seed: int
    count: int
    present: Ints | int
    there: Callable[[Ints], Bools]
    size: Callable[[Ints], Ints]
    seconds: Callable[[Ints], Floats]

    def rng(self, purpose: str = "cohort") -> np.random.Generator:
        """The stream of this draw."""
        return seeds.rng(self.seed, purpose, self.number, self.nth)

    def everyone(self) -> Ints:
        """Whoever may take part, there or not: one array of the population."""
        return np.arange(self.present) if isinstance(self.present, int) else self.present

    def members(self, clients: Ints) -> Ints:
        """Those of these clients that may take part, there or not."""
        return clients if isinstance(self.present, int) else clients[np.isin(clients, self.present)]


class Learned(NamedTuple):
    """What a round taught about the clients that were asked; arrays [K].

    `loss` is the mean training loss and `squares` the mean of its squares over samples (nan: unknown), `samples` what
    they were taken over, `seconds` what the order took (nan without a clock), `answered` whether the reply was used.
    `accuracy` is clients' own, where the round was followed by an evaluation on clients.

    Rules that adapt work also get `steps`, how many local steps clients were asked for, and `apart`, how far the
    updates lie from their mean: the root of the mean squared distance (by the replies' weights) over the norm of the
    mean, nan where fewer than two can be compared.
    """

    number: int
    clients: Ints
    loss: Floats
    samples: Ints
    seconds: Floats
    answered: Bools
    squares: Floats
    accuracy: Mapping[int, float] | None = None
    steps: Ints | None = None
    apart: float = math.nan

    @property
    def told(self) -> Bools:
        """Whose reply was used and came with a loss."""
        return self.answered & np.isfinite(self.loss)


class Chosen(NamedTuple):
    """Who is asked, ascending and once each.

    Where there are `factors`, replies count equally, and each client's change is multiplied by its factor before.
    """

    clients: list[int]
    factors: Mapping[int, float] | None
    state: Record


class Choice(ABC):
    """Who is asked in a round: a frozen dataclass, whose fields are its settings.

    * `draw` gives `ask.count` clients that may take part and are there, or all of those where they are fewer; nobody
      twice. It takes chance from `ask.rng()` alone, so that a run draws the same again, and anywhere.
    * What it has to know of earlier rounds is `state`: a record of numbers and tensors, the same fields and shapes from
      `begin` to the end, because checkpoints hold it. A state is never changed: give another.
    * `learn` is called after a round that counts, with all that were asked; `draw`, for one round, any number of times.
    * There may be millions of clients: work on arrays, and ask `there`, `size` and `seconds` about few.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Quickest(Choice):
    ...     '''Those that would be done first.'''
    ...
    ...     name = "quickest"
    ...
    ...     def draw(self, state, ask):
    ...         clients = ask.everyone()
    ...         here = clients[ask.there(clients)]
    ...         order = np.argsort(ask.seconds(here), kind="stable")
    ...         return Chosen(sorted(here[order[: ask.count]].tolist()), None, state)
    >>> all_there = lambda clients: clients >= 0
    >>> ask = Ask(1, 0, 0, 2, 5, all_there, lambda clients: clients, lambda clients: 9.0 - clients)
    >>> Quickest().draw(Record(), ask).clients
    [3, 4]
    """

    name: ClassVar[str]
    coins: ClassVar[bool] = False
    """Whether how many are drawn, perhaps none, is left to chance: whoever is drawn is wanted then, however slow."""

    def begin(self, clients: int) -> Record:
        """The state before the first round, of this many clients."""
        return Record()

    @abstractmethod
    def draw(self, state: Record, ask: Ask) -> Chosen:
        """Who is asked."""

    def learn(self, state: Record, learned: Learned) -> Record:
        """The state after a round."""
        return state


def chosen(clients: Any, state: Record) -> Chosen:
    """An answer without factors."""
    return Chosen(sorted(clients.tolist()), None, state)
