"""Asynchronous rounds: clients work all the time, and the server takes a step for every so many replies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from atoll import seeds
from atoll.contract import Job, Method, Outcome, Population, Reducer, Replies, Reply
from atoll.rounds.clocked import Clocked
from atoll.rounds.cohort import Cohort
from atoll.rounds.flights import Flight, landed, launched
from atoll.rounds.outcomes import taught
from atoll.rounds.paces import Buffered, Mixing, Pairs
from atoll.rounds.play import Played
from atoll.rounds.progress import Progress
from atoll.rounds.round import refusals, stepped, unusable
from atoll.rounds.timed import Timed
from atoll.tensors import Record, Tensors

__all__ = ["Asynchronous", "alike", "counted"]


class _Air:
    """A round in the making: what is under way, what has landed, and what it has cost so far."""

    def __init__(self, state: Record, now: Progress) -> None:
        self.state, self.told, self.time, self.choice = state, now.told, now.time, now.choice
        self.flights, self.landed = list(now.flights), list(now.landed)
        self.broken: list[Flight] = []
        self.kept: Mapping[int, float] = {}
        self.draws = 0
        self.bytes_down = self.bytes_up = 0
        self.energy = self.spent = 0.0

    def lose(self, gone: Sequence[int]) -> None:
        """These clients have left, and their work with them."""
        lost = [f for f in (*self.flights, *self.landed) if f.client in gone]
        self.broken += [replace(f, due=min(f.due, self.time), broken=True) for f in lost]
        self.flights = [f for f in self.flights if f.client not in gone]
        self.landed = [f for f in self.landed if f.client not in gone]

    def progress(self, before: Progress) -> Progress:
        return replace(
            before,
            told=self.told,
            time=self.time,
            choice=self.choice,
            flights=tuple(self.flights),
            landed=tuple(self.landed),
        )


class Asynchronous(Timed):
    """A simulation whose server waits for nobody.   Nguyen et al., AISTATS 2022; Xie et al. 2019 (see `paces`)

    `concurrency` clients are at work at any time. Whoever is done makes room for another one, who is sent the model as
    it is then; the server takes a step, a round, for every `size` replies. What happens at the same moment is taken
    together, in the order of clients, before free places are filled. A client is not asked again before its reply has
    been used. At the pace of `Pairs` there is no server, and a step is one of a peer with a neighbour that is there.
    """

    def advance(self, begun: Callable[[Cohort], object] = lambda _: None) -> Played:
        """Play up to the server's next step. Nothing counts yet.  Raises as `Timed.advance` does."""
        self.memories.rollback()
        pace = self.schedule.pace
        assert isinstance(pace, Buffered | Mixing | Pairs)
        number, since, now = self.number + 1, time.perf_counter(), self.progress
        air = _Air(self.state, now)
        start = air.time
        gone = self.cohorts.membership.leaving(number, now.began, start)
        if gone:
            air.state = self.opened(air.state, Cohort([], gone=gone), number).state
            air.lose(gone)
        self._fill(air, now, number)
        begun(Cohort(sorted(f.client for f in air.flights)))
        while len(air.landed) < pace.size:
            self._land(air, now, number, pace.size)
            if len(air.landed) < pace.size:
                self._fill(air, now, number)
        taken, air.landed = air.landed, []
        reducer, outcomes, taken = self._gathered(air, taken, number, pace)
        refused, replies = refusals(outcomes), reducer.result()
        air.bytes_up += sum(outcome.nbytes for outcome in outcomes)
        if replies is not None:
            if self.channel is not None:
                air.told, replies = self.channel.learn(air.told, replies)
            air.kept = replies.kept
            with seeds.scoped(self.cohorts.seed, "settle train", number):
                air.state = self._stepped(air, replies, number)
                if (carried := self.method.carried(air.state)) is not None:
                    air.bytes_up = air.bytes_down = carried
        elif refused and len(refused) == len(outcomes):
            raise unusable(refused, number, self.data.names.__getitem__)
        return self._played(air, now, number, since, start, taken, outcomes)

    def _stepped(self, air: _Air, replies: Replies, number: int) -> Record:
        """The state after a step."""
        update = None
        if isinstance(self.schedule.pace, Pairs):
            everyone = self.everyone(number, air.time)
            there = everyone[self.devices.available(everyone, air.time)].tolist()
            update = partial(self.method.meet, there=there)
        return stepped(self.method, self.population, air.state, replies, number, update)

    def linked(self, job: Job, state: Record) -> Job:
        """The job as it is: one model there and one back, to a server or to whom a peer will meet."""
        return job

    @property
    def replies(self) -> int:
        return getattr(self.schedule.pace, "size", 1)

    # --- what happens on the clock ----------------------------------------------------------------------------

    def _fill(self, air: _Air, now: Progress, number: int) -> None:
        """Send the present model to as many clients as there are free places, as far as somebody is there."""
        assert self.schedule.concurrency is not None
        free = self.schedule.concurrency - len(air.flights)
        if free <= 0:
            return
        progress = air.progress(now)
        cohort, air.choice = self.cohorts.enlist(
            number, air.choice, there=self.there(progress, number, air.time), seconds=self.expected, count=free,
            nth=air.draws, time=air.time, since=now.began,
        )  # fmt: skip
        air.draws += 1
        if not cohort.clients:
            return
        round = self.opened(air.state, replace(cohort, gone=[]), number)
        ready, energy, spent = self.enrolled(round, air.time)
        assert round.job is not None
        job, spans, _ = self.planned(round, ready, air.flights)
        new = self.sent(job, spans, ready)
        air.state = round.state
        air.energy, air.spent, air.bytes_down = (
            air.energy + energy,
            air.spent + spent,
            air.bytes_down + round.bytes_down,
        )
        air.bytes_up += round.bytes_up
        there = len(air.landed)  # those wait for the same step, and may have been sent the same
        every = launched([*air.landed, *air.flights], new)
        air.landed, air.flights = every[:there], sorted(every[there:], key=lambda f: f.order)

    def _land(self, air: _Air, now: Progress, number: int, size: int) -> None:
        """Go on to the next moment at which something happens: a reply comes, work breaks off, somebody is back."""
        assert self.schedule.concurrency is not None
        back = math.inf
        if len(air.flights) < self.schedule.concurrency:
            back = self.returning(air.progress(now), number, air.time)
        moment = min(back, air.flights[0].due if air.flights else math.inf)
        if not math.isfinite(moment):
            raise self.deserted(now, number, air.time)
        air.time = moment
        for f in [f for f in air.flights if f.due <= moment]:
            if len(air.landed) == size:  # the others land at the same moment, in the next round
                break
            air.flights.remove(f)
            (air.broken if f.broken else air.landed).append(f)

    # --- a step of the server ---------------------------------------------------------------------------------

    def _gathered(
        self, air: _Air, taken: Sequence[Flight], number: int, pace: Buffered | Mixing | Pairs
    ) -> tuple[Reducer, list[Outcome], list[Flight]]:
        """The reducer that has taken these replies, each for what it counts, and their outcomes, by client."""
        taken = sorted(taken, key=lambda f: f.client)
        whole = self._at_once(air, taken, number, pace)
        if whole is not None:
            return *whole, taken
        everything = [*taken, *air.landed, *air.flights]
        taken, rest = self.finished(taken, everything)
        air.landed, air.flights = rest[: len(air.landed)], rest[len(air.landed) :]
        reducer = taken[0].job.reducer()
        outcomes = []
        for f in taken:
            assert f.done is not None
            landed(f, self.memories)
            outcomes.append(f.done.outcome)
            if f.done.reply is not None:
                part = f.job.reducer()
                stale = number - f.number
                part.add(f.client, counted(self.method, self.population, f, air.state, stale, pace))
                reducer.merge(part)
        return reducer, outcomes, taken

    def _at_once(
        self, air: _Air, taken: Sequence[Flight], number: int, pace: Buffered | Mixing | Pairs
    ) -> tuple[Reducer, list[Outcome]] | None:
        """The replies reduced by the engine as in a synchronous round, where all of a job and nothing else is taken."""
        job = taken[0].job
        others = {f.client for f in (*air.flights, *air.landed) if f.job is job and not f.broken}
        fresh = all(f.job is job and f.done is None and f.number == number for f in taken)
        if not fresh or others:
            return None
        clients = [f.client for f in taken]
        asked = replace(
            job,
            clients=clients,
            cohort=len(clients),
            weights=alike(clients, self.population),
            factors=dict.fromkeys(clients, pace.discount(0)),
        )
        return self.engine.run(asked, self.memories)

    def _played(
        self,
        air: _Air,
        now: Progress,
        number: int,
        since: float,
        start: float,
        taken: Sequence[Flight],
        outcomes: Sequence[Outcome],
    ) -> Played:
        over = [*taken, *air.broken]
        came, left = self.cohorts.membership.moved(start, air.time)
        clock = Clocked(
            began=start,
            ended=air.time,
            spent=air.spent + sum(f.seconds for f in over),
            wasted=sum((f.seconds for f in air.broken), 0.0),
            energy=air.energy + sum(f.energy for f in over),
            staleness=float(np.mean([number - f.number for f in taken])),
            failed=sorted(f.client for f in air.broken),
            used=len(taken),
            came=came,
            left=left,
        )
        shown = {f.client: f for f in [*air.broken, *taken]}
        cohort = Cohort(sorted(shown))
        learned = taught(
            number, cohort.clients, outcomes, self.history, {k: f.seconds for k, f in shown.items()}
        )
        progress = replace(
            air.progress(now),
            choice=self.cohorts.choice.learn(air.choice, learned),
            rule=self.ruled(learned, outcomes, {k: f.job for k, f in shown.items()}, air.time),
            began=start,
            failing=self.failures(now, number, over, air.time),
        )
        traffic = air.bytes_up, air.bytes_down
        record = self.recorded(
            number, cohort, outcomes, traffic, since, clock, list(shown.values()), air.kept
        )
        return Played(record, air.state, outcomes, progress)


def alike(clients: Sequence[int], population: Population) -> dict[int, float]:
    """What replies count for in an average: the same, unless the data say otherwise."""
    given = population.weights
    return {client: 1.0 if given is None else float(given[client]) for client in clients}


def counted(
    method: Method,
    population: Population,
    flight: Flight,
    state: Record,
    staleness: int,
    pace: Buffered | Mixing | Pairs,
) -> Reply:
    """A reply for what it counts at a step of the server from this state, so many steps after it was asked for."""
    assert flight.done is not None and flight.done.reply is not None
    reply, client = flight.done.reply, flight.client
    if isinstance(pace, Mixing) and staleness:
        reply = _moved(method, flight.job, reply, client, state)
    if isinstance(pace, Pairs) and staleness:
        reply = method.caught_up(state, client, reply, flight.job.work.received(client))
    by = pace.discount(staleness)
    asked = replace(flight.job, weights=alike([client], population), factors={client: by})
    return asked.weighed([client], reply)


def _moved(method: Method, job: Job, reply: Reply, client: int, state: Record) -> Reply:
    """A reply whose change leads from the present model to the client's, not from the one that it was sent."""
    change = method.change
    if change is None or change.since is not None:
        return reply
    sent, params = job.work.received(client).get("params"), method.model(state)[0]
    if not isinstance(sent, Tensors) or sent.keys() != params.keys():
        return reply
    moved = reply.values[change.field] + (sent - params)
    return reply._replace(values=reply.values.replace(**{change.field: moved}))
