"""Rounds with nodes, on the real clock: who is there is asked, and a round that nobody can play waits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.contract import Job
from atoll.errors import DivergedError, PausedError, RunError
from atoll.network.desk import Desk
from atoll.network.elsewhere import Elsewhere
from atoll.network.remote import Remote
from atoll.network.room import crowded
from atoll.rounds.cohort import Cohort
from atoll.rounds.play import Played, Simulation
from atoll.rounds.round import ServerRound
from atoll.tensors import Record

__all__ = ["Deployed"]


class Deployed(Simulation):
    """The rounds of a federation of nodes.

    Args:
        desk: where nodes are met.
        least: nodes without which no round begins.
        over: how many times a cohort is asked.

    Whatever it waits for is written into the journal, so that a round that is played again goes the same way.
    """

    engine: Remote
    data: Elsewhere

    def __init__(self, *parts: Any, desk: Desk, least: int, over: float = 1.0, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.desk, self.least, self.over = desk, least, over
        desk.speeds.wanted = bool(self.codecs)

    def advance(self, begun: Callable[[Cohort], object] = lambda _: None) -> Played:
        number = self.number + 1
        self.engine.restart(number)
        self.desk.state = f"round {number}: beginning"
        try:
            return self.play(begun)
        except DivergedError:
            raise
        except RunError as error:
            if crowded(error):
                raise
            self.desk.journal.drop(f"round/{number}/")  # what was said is of no use: ask anew
            raise PausedError(
                error.message, hint="look at the nodes' logs; `atoll serve` goes on from here"
            ) from error

    def play(self, begun: Callable[[Cohort], object]) -> Played:
        """The next round, whatever happens in it."""
        return super().advance(begun)

    def present(self, number: int) -> list[int]:
        """Clients of this round whose nodes are there now."""
        may = self._may(number)
        return [client for client in self.data.clients if client in may and self.desk.there(client)]

    def _may(self, number: int) -> set[int]:
        """Who may take part in a round: not those who never do, or have not come yet."""
        present = self.cohorts.membership.present(number)
        return set(range(present)) if isinstance(present, int) else set(present.tolist())

    def enlist(self, number: int) -> tuple[Cohort, Record]:
        here = np.array(self._there(number), np.int64)

        def there(clients: NDArray[np.int64]) -> NDArray[np.bool_]:
            return np.isin(clients, here)

        count = math.ceil(self.cohorts.size * self.over - 1e-9)
        return self.cohorts.enlist(number, self.progress.choice, there=there, count=count)

    def _there(self, number: int) -> list[int]:
        """Clients whose nodes are there at the beginning of a round; waits until they are enough."""
        key = f"round/{number}/there"
        if (known := self.desk.journal.get(key)) is not None:
            return list(known)
        least = min(self.least, len(self._may(number)))
        with self.desk.changed:
            while True:
                found = self.present(number)
                if len(found) >= least:
                    break
                self.desk.state = f"round {number}: waiting for nodes, {len(found)} of at least {least}"
                self.desk.wait()
        self.desk.journal.put(key, found)
        return found

    def fitted(self, round: ServerRound) -> Job:
        """What clients are asked in training, with the codecs that the rule chooses by how quickly they have sent."""
        if not self.codecs:
            return super().fitted(round)
        assert round.job is not None and self.rule is not None
        found = self.desk.speeds.chosen(
            round.job, self.data, self.rule, self.progress.rule, self.codecs, self.engine.waiting.deadline
        )
        round.choose(found)
        assert round.job is not None
        return round.job

    def opened(self, state: Record, cohort: Cohort, number: int) -> ServerRound:
        for client in cohort.gone:  # what they remember is with them, and so nothing of it can be taken back
            self.memories.forget(client)
        return ServerRound(
            self.method, self.population, state, cohort, number, self.cohorts.seed,
            channel=self.channel, told=self.progress.told, down=self.down, spread=self.progress.spread,
            name=self.data.names.__getitem__,
        )  # fmt: skip
