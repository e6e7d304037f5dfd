"""Asynchronous rounds with nodes: they work all the time, and the server takes a step for every so many replies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll import seeds
from atoll.contract import Job, Outcome
from atoll.network.desk import Posted
from atoll.network.rounds import Deployed
from atoll.rounds.buffered import counted
from atoll.rounds.cohort import Cohort
from atoll.rounds.flights import Done, Flight
from atoll.rounds.history import Round
from atoll.rounds.outcomes import columns, mean_loss, taught
from atoll.rounds.paces import Buffered, Mixing
from atoll.rounds.play import Played
from atoll.rounds.round import refusals, stepped, unusable
from atoll.tensors import Record

__all__ = ["Unhurried"]


@dataclass
class _Air:
    """A step of the server in the making."""

    state: Record
    told: Record
    choice: Record
    flights: dict[int, Flight]
    posted: dict[int, Posted] = field(default_factory=dict)
    landed: list[Flight] = field(default_factory=list)
    lost: list[Outcome] = field(default_factory=list)
    draws: int = 0
    down: int = 0
    up: int = 0


class Unhurried(Deployed):
    """Rounds that wait for nobody (FedBuff, FedAsync; see `atoll.rounds.paces`), on the real clock.

    `concurrency` nodes are at work at any time, as far as so many are there. Who has answered makes room for another
    one, who is sent the model as it is then. What decides a step's bits is written down: who was there when somebody
    was asked, and in which order answers came.
    """

    def __init__(self, *parts: Any, pace: Buffered | Mixing, concurrency: int, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.pace, self.concurrency = pace, concurrency

    def play(self, begun: Callable[[Cohort], object]) -> Played:
        self.memories.rollback()
        number, since, now = self.number + 1, time.perf_counter(), self.progress
        self.engine.restart(number, first=1)  # call 0 is that of the flights
        air = _Air(self.state, now.told, now.choice, {f.client: f for f in now.flights})
        for flight in list(air.flights.values()):
            self._post(air, flight.job, [flight.client])
        self._fill(air, number)
        begun(Cohort(sorted(air.flights)))
        while len(air.landed) < self.pace.size:
            self._land(air, number, len(air.landed) + len(air.lost))
            if len(air.landed) < self.pace.size:
                self._fill(air, number)
        return self._stepped(air, number, since)

    # --- who is at work ---------------------------------------------------------------------------------------

    def _fill(self, air: _Air, number: int) -> None:
        """Send the present model to as many nodes as there are free places, as far as they are there."""
        free = self.concurrency - len(air.flights)
        if free <= 0:
            return
        busy = {*air.flights, *(f.client for f in air.landed)}
        here = np.array(self._free(number, air, busy), np.int64)

        def there(clients: NDArray[np.int64]) -> NDArray[np.bool_]:
            return np.isin(clients, here)

        cohort, air.choice = self.cohorts.enlist(number, air.choice, there=there, count=free, nth=air.draws)
        air.draws += 1
        if not cohort.clients:
            return
        round = self.opened(air.state, cohort, number)
        if round.phase == "enrol":
            assert round.job is not None
            round.settle(*self.engine.run(round.job, self.memories))
        air.state, air.up, air.down = round.state, air.up + round.bytes_up, air.down + round.bytes_down
        if round.job is not None:
            for client in round.job.clients:
                air.flights[client] = _flight(client, number, round.job)
            self._post(air, round.job, round.job.clients)

    def _free(self, number: int, air: _Air, busy: set[int]) -> list[int]:
        """Clients that are there and have nothing to do; waits for one where nobody is at work."""
        key = f"round/{number}/free/{air.draws}"
        if (known := self.desk.journal.get(key)) is not None:
            return list(known)
        with self.desk.changed:
            while True:
                found = [client for client in self.present(number) if client not in busy]
                enough = len(found) + len(busy) >= min(self.least, len(self._may(number))) or air.flights
                if enough and (found or air.flights):
                    break
                self.desk.state = f"round {number}: waiting for nodes, {len(found)} are there"
                self.desk.wait()
        self.desk.journal.put(key, found)
        return found

    def _post(self, air: _Air, job: Job, clients: Sequence[int]) -> None:
        posted = self.engine.posted(replace(job, clients=list(clients)), self.memories, call=0)
        air.posted |= posted
        self.desk.opened(posted)
        with self.desk.changed:
            self.desk.post(list(posted.values()))

    def _land(self, air: _Air, number: int, nth: int) -> None:
        """Take the next answer that comes, or give up a node that is away."""
        key = f"round/{number}/landed/{nth}"
        fact = self.desk.journal.get(key)
        if fact is None:
            fact = self._awaited(air, number)
            self.desk.journal.put(key, fact)
        client = int(fact["client"])
        flight, posted = air.flights.pop(client), air.posted.pop(client)
        reason = fact["lost"]
        if reason is None:
            with self.desk.changed:
                while (arrival := self.desk.arrived(posted.key)) is None:
                    self.desk.wait()
            answer, outcome = self.engine.taken(flight.job, posted, arrival)
            air.up += outcome.nbytes
            if answer is not None:
                done = Done(outcome, answer.reply, Record(task=posted.task.id))
                air.landed.append(replace(flight, done=done))
                self.desk.withdraw([posted])
                return
            air.lost.append(outcome)
        else:
            air.lost.append(Outcome(client, 0.0, {}, 0, reason))
        self.desk.withdraw([posted])

    def _awaited(self, air: _Air, number: int) -> dict[str, Any]:
        with self.desk.changed:
            while True:
                came = [
                    (found.ended, client)
                    for client in air.flights
                    if (found := self.desk.arrived(air.posted[client].key)) is not None
                ]
                if came:
                    return {"client": min(came)[1], "lost": None}
                for client in air.flights:
                    if not self.desk.there(client):
                        return {"client": client, "lost": "its node is away"}
                have, size = len(air.landed), self.pace.size
                self.desk.state = f"round {number}: {have} of {size} replies, {len(air.flights)} at work"
                self.desk.wait()

    # --- a step of the server ---------------------------------------------------------------------------------

    def _stepped(self, air: _Air, number: int, since: float) -> Played:
        taken = sorted(air.landed, key=lambda f: f.client)
        reducer = taken[0].job.reducer()
        outcomes = [f.done.outcome for f in taken if f.done is not None]
        for f in taken:
            assert f.done is not None and f.done.memory is not None
            self.memories.put(f.client, f.done.memory)
            part = f.job.reducer()
            part.add(
                f.client, counted(self.method, self.population, f, air.state, number - f.number, self.pace)
            )
            reducer.merge(part)
        replies = reducer.result()
        if replies is None:
            raise unusable(refusals(air.lost), number, self.data.names.__getitem__)
        if self.channel is not None:
            air.told, replies = self.channel.learn(air.told, replies)
        with seeds.scoped(self.cohorts.seed, "settle train", number):
            air.state = stepped(self.method, self.population, air.state, replies, number)
        self.desk.closed(str(number), "train", outcomes, since)
        everybody = {o.client: o for o in [*air.lost, *outcomes]}
        cohort = Cohort(sorted(everybody))
        found = columns(cohort, list(everybody.values()), since, self.method.plan().epochs, replies.kept)
        by_client = {f.client: float(number - f.number) for f in taken}
        found["staleness"] = [by_client.get(client, float("nan")) for client in cohort.clients]
        record = Round(
            number, cohort.clients, [], refusals(list(everybody.values())), mean_loss(outcomes), air.up, air.down,
            time.perf_counter() - since, clients=found,
        )  # fmt: skip
        learned = taught(number, cohort.clients, outcomes, self.history)
        progress = replace(
            self.progress,
            told=air.told,
            choice=self.cohorts.choice.learn(air.choice, learned),
            flights=tuple(sorted(air.flights.values(), key=lambda f: (f.number, f.client))),
        )
        return Played(record, air.state, outcomes, progress)


def _flight(client: int, number: int, job: Job) -> Flight:
    """An order under way; when it will be done nobody knows."""
    return Flight(client, number, 0.0, 0.0, False, 0.0, 0.0, 0.0, 0.0, 0.0, job)
