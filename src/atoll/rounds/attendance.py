"""Who is there on the virtual clock: whose device can be asked, who is at work or rests, and when somebody is back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.clock import Devices
from atoll.errors import PausedError
from atoll.rounds.cohort import Cohort
from atoll.rounds.flights import Flight
from atoll.rounds.paces import Schedule
from atoll.rounds.play import Simulation
from atoll.rounds.progress import Progress
from atoll.rounds.timing import Timing
from atoll.tensors import Record, nbytes

__all__ = ["Attended"]

Clients = NDArray[np.int64]
Numbers = NDArray[np.float64]

_COPIES = 3
"""Models that a client holds while it trains one."""


class Attended(Simulation):
    """A simulation whose clients are not always there. How its rounds go by the clock is up to subclasses."""

    def __init__(self, *parts: Any, devices: Devices, schedule: Schedule, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.devices, self.schedule = devices, schedule
        self.timing = Timing(devices, self.data, self.cohorts.seed, self.cohorts.membership)

    def enlisted(self, number: int, now: Progress, wanted: int) -> tuple[float, Cohort, Record]:
        """When the round can begin, with whom, and the state of the choice then. Waits until somebody is there.

        Where a rule wants fewer than a cohort, the fastest of those drawn.
        Raises PausedError where nobody will ever be.
        """
        moment = now.time
        while True:
            there = self.there(now, number, moment)
            cohort, choice = self.cohorts.enlist(
                number, now.choice, there=there, seconds=self.expected, count=wanted, time=moment,
                since=now.began,
            )  # fmt: skip
            coins = self.cohorts.choice.coins
            if cohort.clients or (coins and there(self.everyone(number, moment)).any()):
                return moment, cohort if coins else self._fastest(cohort), choice
            again = self.returning(now, number, moment)
            if not math.isfinite(again):
                raise self.deserted(now, number, moment)
            moment = again

    def everyone(self, number: int, moment: float) -> Clients:
        """Whoever may take part now, there or not."""
        present = self.cohorts.membership.present(number, moment)
        return np.arange(present) if isinstance(present, int) else present

    def _fastest(self, cohort: Cohort) -> Cohort:
        """As many as the rule wants, those that would be done first."""
        most = self._asked(self._size)
        if len(cohort.clients) <= most:
            return cohort
        clients = np.array(cohort.clients, np.int64)
        first = clients[np.argsort(self.expected(clients), kind="stable")[:most]]
        return replace(cohort, clients=sorted(first.tolist()))

    @property
    def _size(self) -> int:
        """Replies that the next round needs."""
        size = self.cohorts.size
        return size if self.rule is None else self.rule.size(self.progress.rule, size)

    def _asked(self, size: int) -> int:
        """How many are asked for so many replies."""
        return math.ceil(size * self.schedule.over_select - 1e-9)

    def there(self, now: Progress, number: int, moment: float) -> Callable[[Clients], NDArray[np.bool_]]:
        """Which of some clients can be asked: their device is there, they are not at work, and they need no rest."""
        busy = {f.client for f in (*now.flights, *now.landed)}
        away = np.array(sorted(busy | self._resting(now, number)), np.int64)

        def there(clients: Clients) -> NDArray[np.bool_]:
            here = self.devices.available(clients, moment)
            if self.devices.limited:
                here &= self._fits(clients)
            return here & ~np.isin(clients, away) if len(away) else here

        return there

    def _fits(self, clients: Clients) -> NDArray[np.bool_]:
        """Whose device has the memory to train the model: for itself, its gradient and what it was sent."""
        return np.asarray(self.devices.profiles(clients).memory >= _COPIES * self._model)

    @staticmethod
    def _resting(now: Progress, number: int) -> set[int]:
        return {client for client, (_, until) in now.failing.items() if number <= until}

    def returning(self, now: Progress, number: int, moment: float) -> float:
        """When the next client that cannot be asked now can be; inf: never."""
        here = self.cohorts.membership
        present: Any = here.present(number, moment)
        clients = np.arange(present) if isinstance(present, int) else present
        again = self.devices.returns(clients, moment)
        busy = {f.client: f.due for f in now.flights if f.due > moment}
        if busy:
            again = np.maximum(again, np.array([busy.get(int(k), -math.inf) for k in clients]))
        never = [*self._resting(now, number), *(f.client for f in now.landed)]
        later = (again > moment) & ~np.isin(clients, np.array(never, np.int64))
        if self.devices.limited:
            later &= self._fits(clients)
        return float(np.min(again[later], initial=here.arrival(moment)))

    def deserted(self, now: Progress, number: int, moment: float) -> PausedError:
        """The error of a round for which nobody can be asked, ever."""
        resting = self._resting(now, number)
        present: Any = self.cohorts.membership.present(number, moment)
        hint = (
            "what was learned is kept: resume the run with other `devices`, or look at `leaves` and `exclude`"
        )
        if not isinstance(present, int) and not len(present):
            what = "everybody has left, and nobody else will come"
            hint = "what was learned is kept; a round waits for clients that are still to come (`joins`)"
        elif resting:
            what = f"{len(resting)} clients have failed too often, and nobody else is there"
        else:
            what = "nobody is there any more"
        return PausedError(
            f"round {number}: {what} (after {moment:.6g} virtual seconds)",
            hint=hint,
        )

    def expected(self, clients: Clients) -> Numbers:
        """Seconds that an order would take these clients, about."""
        plan = self.method.plan()
        sizes = np.array([self.data.size(int(k)) for k in clients], np.float64)
        batch = np.minimum(plan.batch_size or math.inf, sizes)
        samples = plan.epochs * sizes if plan.steps is None else plan.steps * batch
        return self.timing.expected(clients, samples, self._model)

    @property
    def _model(self) -> int:
        return sum(nbytes(part) for part in self.method.model(self.state))

    # --- who rests --------------------------------------------------------------------------------------------------

    def failures(
        self, now: Progress, number: int, flights: Sequence[Flight], end: float
    ) -> dict[int, tuple[int, int]]:
        """Who has broken off how many orders in a row, and up to which round it is left in peace."""
        if self.schedule.rests is None:
            return {}
        most, rounds = self.schedule.rests
        failing = {client: row for client, row in now.failing.items() if row[0] or row[1] >= number}
        for f in flights:
            if f.due > end:
                continue
            count, _ = failing.pop(f.client, (0, 0))
            if f.broken:
                failing[f.client] = (0, number + rounds) if count + 1 >= most else (count + 1, 0)
        return failing
