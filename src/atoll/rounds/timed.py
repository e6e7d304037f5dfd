"""Synchronous rounds on a virtual clock: what is asked of whom, whose reply is there in time, and how long it took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll import seeds
from atoll.clock import Spans
from atoll.contract import Job, Outcome, Reducer
from atoll.errors import ConfigError, PausedError
from atoll.rounds.adapting import Away, asked, fitting, limited, seen
from atoll.rounds.attendance import Attended
from atoll.rounds.clocked import Clocked
from atoll.rounds.cohort import Cohort
from atoll.rounds.flights import Flight, computed, landed, launched
from atoll.rounds.history import Round
from atoll.rounds.outcomes import columns, mean_loss, read, taught
from atoll.rounds.play import Played
from atoll.rounds.progress import Progress
from atoll.rounds.round import ServerRound, refusals
from atoll.tensors import Record

__all__ = ["Timed"]

Numbers = NDArray[np.float64]

_IN_VAIN = 20
"""So many rounds in a row without enough replies, and the run pauses."""


class Timed(Attended):
    """A simulation whose rounds take virtual time.

    Work is computed as ever; when it would have been done follows from the devices. Nothing here looks at a real clock
    but for the seconds that the simulation itself takes.
    """

    # --- a round ----------------------------------------------------------------------------------------------

    def advance(self, begun: Callable[[Cohort], object] = lambda _: None) -> Played:
        """Play the next round; `begun` is told who works in it. Nothing counts yet.

        Raises DivergedError, RunError (see `ServerRound.settle`), PausedError where nobody is there.
        """
        self.memories.rollback()
        number, since, now = self.number + 1, time.perf_counter(), self.progress
        gone = set(self.cohorts.membership.leaving(number))
        now = replace(now, flights=[f for f in now.flights if f.client not in gone])
        start, cohort, choice = self.enlisted(number, now, self._asked(self.cohorts.size))
        begun(cohort)
        with seeds.held():
            round = self.opened(self.state, cohort, number)
            if round.job is None:  # coins asked nobody
                return self._empty(round, choice, number, since, start)
            ready, energy, spent = self.enrolled(round, start)
            assert round.job is not None
            job, spans, limit = self.planned(round, ready)
            sent = self.sent(job, spans, ready)
            size = len(sent) if self.cohorts.choice.coins else self._size
            end, used = self._ending(sent, size, ready, limit)
            late = [f for f in sent if f.client not in used and not f.broken]
            kept = late if self.schedule.late.kind == "keep" else []
            earlier, under_way = self.finished([f for f in now.flights if f.due <= end], now.flights)
            reducer, outcomes = job.reducer(), list[Outcome]()
            if used:
                reducer, outcomes = self.engine.run(replace(job, clients=sorted(used)), self.memories)
            outcomes += self._late(earlier, number, reducer)
            if outcomes or (self.channel is not None and self.channel.always):
                round.settle(reducer, outcomes)
        over = [f for f in sent if f not in kept]
        unused = [f for f in over if f.client not in used]
        counted = [f for f in [*sent, *earlier] if f.client in used or (f in earlier and not f.broken)]
        came, left = self.cohorts.membership.moved(now.time, end)
        clock = Clocked(
            began=start,
            ended=end,
            spent=spent + sum(until(f, end) for f in over) + sum(f.seconds for f in earlier),
            wasted=sum((until(f, end) for f in unused), 0.0) + sum(f.seconds for f in earlier if f.broken),
            energy=energy + self._energy(spans, job, over, end) + sum(f.energy for f in earlier),
            staleness=float(np.mean([number - f.number for f in counted])) if counted else 0.0,
            late=sorted({*(f.client for f in late), *(k for k, n in job.limits.items() if n == 0)}),
            failed=sorted(f.client for f in [*sent, *earlier] if f.broken and f.due <= end),
            used=len(counted),
            came=came,
            left=left,
        )
        everyone = replace(cohort, clients=sorted({*cohort.clients, *(f.client for f in earlier)}))
        learned = taught(
            number, cohort.clients, round.outcomes, self.history, {f.client: f.seconds for f in sent}
        )
        progress = Progress(
            choice=self.cohorts.choice.learn(choice, learned),
            rule=self.ruled(learned, round.outcomes, dict.fromkeys(job.clients, job), end),
            told=round.told,
            spread=round.spread,
            time=end,
            began=start,
            flights=sorted(launched(under_way, kept), key=lambda f: f.order),
            failing=self.failures(now, number, [*sent, *earlier], end),
        )
        self._not_in_vain(clock, number)
        traffic = round.bytes_up, round.bytes_down
        record = self.recorded(
            number, everyone, round.outcomes, traffic, since, clock, [*sent, *earlier], round.kept
        )
        return Played(record, round.state, round.outcomes, progress)

    def _empty(self, round: ServerRound, choice: Record, number: int, since: float, start: float) -> Played:
        """A round that asked nobody, and took no time."""
        clock = Clocked(began=start, ended=start)
        record = self.recorded(number, round.cohort, [], (round.bytes_up, round.bytes_down), since, clock, [])
        progress = replace(
            self.progress, choice=choice, told=round.told, spread=round.spread, time=start, began=start
        )
        return Played(record, round.state, [], progress)

    def enrolled(self, round: ServerRound, start: float) -> tuple[float, float, float]:
        """Let new clients answer what they are asked first; when that is done, joules and client-seconds it took."""
        if round.phase != "enrol":
            return start, 0.0, 0.0
        assert round.job is not None
        spans = self.timing.spans(round.job, round.job.clients, start)
        round.settle(*self.engine.run(round.job, self.memories))
        return start + float(np.max(spans.total)), float(np.sum(spans.energy())), float(np.sum(spans.total))

    def planned(
        self, round: ServerRound, start: float, flights: Sequence[Flight] = ()
    ) -> tuple[Job, Spans, float]:
        """The round's job with the codecs that clients take and the steps that they have time for, what their orders
        then take, and the round's deadline.

        `flights` are orders that are under way as these go out.

        The deadline is that of the work as it was planned: a share of those asked would be done with all of it by then.
        """
        if self.codecs:
            self._choose(round, start)
        assert round.job is not None
        job = self.linked(round.job, round.state)
        spans = self.timing.spans(job, job.clients, start)
        partial, deadline = self.schedule.late.kind == "partial", self._deadline(spans.total)
        if self.rule is None and not partial:
            return job, spans, deadline
        fixed = spans.latency + spans.download + spans.upload
        away = [Away(f.client, f.began, *asked(f.job, f.client, self.data.size(f.client))) for f in flights]
        view = seen(
            job, self.data, fixed=fixed, compute=spans.compute, deadline=deadline, time=start, away=away
        )
        limits = self.wished(view)
        if partial:
            fit = fitting(view, deadline)
            limits = {**limits, **{k: min(n, limits.get(k, n)) for k, n in fit.items()}}
        if not limits:
            return job, spans, deadline
        job = limited(job, limits)
        return job, self.timing.spans(job, job.clients, start), deadline

    def linked(self, job: Job, state: Record) -> Job:
        """The job that knows what clients send each other, where there is no server."""
        links = self.method.traffic(state, job.clients)
        return replace(job, work=replace(job.work, links=links)) if links else job

    def _choose(self, round: ServerRound, start: float) -> None:
        """Let the rule choose clients' codecs, by what their orders would take with each."""
        job = round.job
        assert job is not None and self.rule is not None
        spans = [
            self.timing.spans(
                replace(job, work=job.work.choosing(dict.fromkeys(job.clients, at))), job.clients, start
            )
            for at in range(self.codecs)
        ]
        quickest = np.min([each.total for each in spans], axis=0)
        view = seen(
            job, self.data, fixed=spans[0].latency + spans[0].download, compute=spans[0].compute,
            deadline=self._deadline(quickest), time=start, uploads=np.stack([each.upload for each in spans]),
        )  # fmt: skip
        round.choose(self.rule.codecs(self.progress.rule, view))

    def _deadline(self, total: Numbers) -> float:
        """Seconds that a round may take whose orders take so long."""
        given = math.inf if self.schedule.deadline is None else self.schedule.deadline.of(total)
        return given if self.rule is None else self.rule.deadline(self.progress.rule, total, given)

    def sent(self, job: Job, spans: Spans, start: float) -> list[Flight]:
        """The orders of a job that goes out at this moment, in the order in which they land."""
        whole, broken = spans.total, spans.broken
        length = np.minimum(whole, broken)
        columns = (
            start + length, broken < whole, spans.download, spans.compute, spans.upload, spans.latency,
            spans.energy(length),
        )  # fmt: skip
        rows = zip(job.clients, *(column.tolist() for column in columns), strict=True)
        flights = [
            Flight(client, job.round, start, due, fails, download, compute, upload, latency, energy, job)
            for client, due, fails, download, compute, upload, latency, energy in rows
        ]
        for nth in range(1, self.schedule.retry + 1):
            flights = [self._again(f, nth) if f.broken else f for f in flights]
        return sorted(flights, key=lambda f: f.order)

    def _again(self, flight: Flight, nth: int) -> Flight:
        """An order that broke off, given once more at that moment, if the client is there."""
        client = np.array([flight.client])
        if not self.devices.available(client, flight.due)[0]:
            return flight
        spans = self.timing.spans(flight.job, [flight.client], flight.due, nth)
        length = min(float(spans.total[0]), float(spans.broken[0]))
        return replace(
            flight,
            due=flight.due + length,
            broken=bool(spans.broken[0] < spans.total[0]),
            energy=flight.energy + float(spans.energy(length)[0]),
        )

    def _ending(
        self, sent: Sequence[Flight], size: int, start: float, deadline: float
    ) -> tuple[float, set[int]]:
        """When the round ends, and whose replies are there by then."""
        answers = [f for f in sent if not f.broken]
        limit = start + deadline
        latest = max((f.due for f in sent), default=limit)  # the server hears of a connection that breaks
        enough = answers[size - 1].due if len(answers) >= size else math.inf
        end = min(enough, limit, latest)
        slack = 1e-9 * (end - start)  # steps that fill the time to the last second are in time
        used = [f.client for f in answers if f.due <= end + slack][:size]
        return end, set(used) if len(used) >= self.schedule.quorum else set()

    def _late(self, flights: Sequence[Flight], number: int, reducer: Reducer) -> list[Outcome]:
        """Give replies to earlier rounds, which have come now, to the reducer, each for what it counts."""
        outcomes: list[Outcome] = []
        for f in flights:
            if f.done is None:
                continue
            landed(f, self.memories)
            outcomes.append(f.done.outcome)
            if f.done.reply is not None:
                reply = f.job.weighed([f.client], f.done.reply)
                by = self.schedule.late.discount(number - f.number)
                reducer.add(f.client, reply._replace(weight=reply.weight * by))
        return outcomes

    def finished(self, due: Sequence[Flight], flights: Sequence[Flight]) -> tuple[list[Flight], list[Flight]]:
        """(those that are due, with what their work came to; the other flights).

        What was sent out in the same step of the server is computed together, due or not.
        """
        found, now = list(flights), [flights.index(f) for f in due]
        for job in {id(f.job): f.job for f in due if f.done is None and not f.broken}.values():
            found = computed(found, job, self.engine, self.memories)
        here = set(now)
        return [found[at] for at in now], [f for at, f in enumerate(found) if at not in here]

    def _energy(self, spans: Spans, job: Job, flights: Sequence[Flight], end: float) -> float:
        """Joules of these orders up to the end of the round."""
        cut = {f.client: until(f, end) for f in flights if f.due > end}
        part = (
            spans.energy(np.array([cut.get(client, 0.0) for client in job.clients])) if cut else np.zeros(1)
        )
        return sum((f.energy for f in flights if f.due <= end), float(np.sum(part)))

    # --- what is written down ---------------------------------------------------------------------------------

    def recorded(
        self,
        number: int,
        cohort: Cohort,
        outcomes: Sequence[Outcome],
        traffic: tuple[int, int],
        since: float,
        clock: Clocked,
        flights: Sequence[Flight],
        kept: Mapping[int, float] | None = None,
    ) -> Round:
        """The round as it is remembered: the clock's columns beside the others. `traffic` is bytes up and down."""
        found = columns(cohort, outcomes, since, self.method.plan().epochs, kept)
        by_client = {f.client: f for f in flights}
        rows = [by_client.get(client) for client in cohort.clients]
        nan = math.nan
        for name in ("began", "download", "compute", "upload"):
            found[name] = [nan if f is None else getattr(f, name) for f in rows]
        found["done"] = [nan if f is None else min(f.due, clock.ended) for f in rows]
        found["staleness"] = [nan if f is None else float(number - f.number) for f in rows]
        return Round(
            number, cohort.clients, cohort.dropped, refusals(outcomes), mean_loss(outcomes), *traffic,
            time.perf_counter() - since, clients=found, clock=clock, tokens=read(outcomes, self.window),
        )  # fmt: skip

    def _not_in_vain(self, clock: Clocked, number: int) -> None:
        """Raise PausedError where round after round ended without enough replies."""
        if clock.used:
            return
        before = self.history[-(_IN_VAIN - 1) :]
        if len(before) == _IN_VAIN - 1 and all(r.clock is not None and not r.clock.used for r in before):
            raise PausedError(
                f"round {number}: too few replies came in time, for {_IN_VAIN} rounds in a row",
                hint="give a longer deadline, ask more clients (over_select), or lower quorum",
            )

    def check(self) -> None:
        """Raise ConfigError where a deadline in seconds leaves nobody enough time."""
        wanted = self.schedule.deadline
        if wanted is None or wanted.seconds is None:
            return
        present: Any = self.cohorts.membership.present(1)
        clients = np.arange(min(present, 10_000)) if isinstance(present, int) else present[:10_000]
        if self.schedule.late.kind == "partial" or self.rule is not None:
            least = self.timing.expected(clients, np.ones(len(clients)), self._model)
        else:
            least = self.expected(clients)
        if float(np.min(least)) > wanted.seconds:
            raise ConfigError(
                f"deadline = {wanted.seconds:g} s is too short for everybody:"
                f" the fastest of {len(clients)} clients needs {float(np.min(least)):.3g} s",
                hint='set a longer one, or deadline="share:0.8" for the time that 80 % of those asked need',
            )


def until(flight: Flight, end: float) -> float:
    """Seconds that a client has spent on an order by then."""
    return max(min(flight.due, end) - flight.began, 0.0)
