"""The server's half of one round, as a state machine without clock, disk, engine or display.

    enlisted -> [enrol: ask new clients, welcome their answers] -> train: broadcast, reduce, update, refine -> over

Each phase has a `job`, what its clients are asked. Answers come one by one in any order (`deliver`, then `close`), as
from a network, or gathered and reduced by an engine (`settle`). Both ways give the same state, to the bit: replies are
summed by the cohort's runs of clients, in their order, whoever is fastest. (Clients of several architectures are summed
by architecture in a simulation: there the last bits differ.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NoReturn

import torch

from atoll import seeds
from atoll.channel.down import Down
from atoll.contract import (
    Answer,
    Channel,
    Gathering,
    Job,
    Method,
    Order,
    Outcome,
    Population,
    Reducer,
    Replies,
    Work,
)
from atoll.errors import DivergedError, RunError
from atoll.rounds.cohort import Cohort
from atoll.tensors import Record, finite

__all__ = ["Phase", "ServerRound", "diverged", "refusals", "stepped", "telling", "unusable"]

Phase = Literal["enrol", "train", "over"]


class ServerRound:
    """One round from the server's side.

    Args:
        state: the server's state after the round before. It is never changed: `state` is the new one at the end.
        cohort: who takes part.
        number: the round's, from 1.
        seed: the run's.
        channel: what happens to replies on the way; `told` is its state after the round before.
        down: what happens to models on their way to clients; `spread` is its state after the round before.
        name: what a client is called in errors.

    `phase` is "enrol" (only where the method asks new clients something first), "train" or "over"; `job` is what is
    asked in it, None when over. `told` and `spread` are the states of what is on the way, new at the end. `outcomes`
    are those of the training phase, `kept` is what a robust rule counted updates for (see `Replies`); bytes are of all
    phases and clients, and where there is no server what these send each other.
    """

    def __init__(
        self,
        method: Method,
        population: Population,
        state: Record,
        cohort: Cohort,
        number: int,
        seed: int,
        *,
        channel: Channel | None = None,
        told: Record | None = None,
        down: Down | None = None,
        spread: Record | None = None,
        name: Callable[[int], object] = str,
    ) -> None:
        self.method, self.population, self.number, self.seed = method, population, number, seed
        self.cohort, self.channel, self.down, self._name = cohort, channel, down, name
        self.state, self.told, self.spread = state, told or Record(), spread or Record()
        self.bytes_up = self.bytes_down = 0
        self.outcomes: list[Outcome] = []
        self.kept: Mapping[int, float] = {}
        self.phase: Phase = "over"
        self.job: Job | None = None
        self._gathering: Gathering | None = None
        with seeds.scoped(seed, "open", number):
            self._begin()

    def _begin(self) -> None:
        method, cohort, number, seed = self.method, self.cohort, self.number, self.seed
        if cohort.gone:
            self.state = method.leave(self.state, cohort.gone)
        if cohort.clients or (self.channel is not None and self.channel.always):
            asked = method.enrol(self.state, cohort.clients)
            if asked is None:
                self._train()
            else:
                new, work = asked
                work = replace(work, reduction="each")
                self._open(
                    "enrol", Job(method, work, new, number, seed, cohort=len(new), channel=self.channel)
                )

    @property
    def refused(self) -> dict[int, str]:
        """Clients whose replies could not be used, and why."""
        return refusals(self.outcomes)

    def orders(self) -> list[Order]:
        """What each client is asked in this phase, in the order of clients."""
        return [] if self.job is None else [self.job.order(client) for client in self.job.clients]

    def choose(self, codecs: Mapping[int, int]) -> None:
        """Tell clients, before they train, which of the channel's codecs they take: the first where none is named."""
        assert self.job is not None, "the round is over"
        chosen = {client: codecs.get(client, 0) for client in self.job.clients}
        before = self.job.work.nbytes_of(self.job.clients)
        self.job = replace(self.job, work=self.job.work.choosing(chosen))
        self.bytes_down += self.job.work.nbytes_of(self.job.clients) - before

    # --- answers ----------------------------------------------------------------------------------------------

    def deliver(self, answer: Answer) -> Outcome:
        """Take one client's answer; the outcome says whether it may be used.

        Raises KeyError for a client that this phase does not ask, ValueError for one that has answered.
        """
        if self.job is None:
            raise KeyError(f"round {self.number} is over")
        self._gathering = self._gathering or Gathering(self.job)
        return self._gathering.deliver(answer)

    @property
    def missing(self) -> list[int]:
        """Clients that have not answered in this phase."""
        if self.job is None:
            return []
        return list(self.job.clients) if self._gathering is None else self._gathering.missing

    def close(self) -> None:
        """End the phase with the answers that were delivered."""
        assert self.job is not None, "the round is over"
        self.settle(*(self._gathering or Gathering(self.job)).result())

    def settle(self, reducer: Reducer, outcomes: Sequence[Outcome]) -> None:
        """End the phase with what came of its job, gathered elsewhere.

        Raises DivergedError where the model leaves the finite numbers, RunError where every reply was refused; the
        state the round began with is then the last one that counts.
        """
        assert self.job is not None, "the round is over"
        self.bytes_up += sum(outcome.nbytes for outcome in outcomes)
        with seeds.scoped(self.seed, f"settle {self.phase}", self.number):
            if self.phase == "enrol":
                self._welcome(reducer, outcomes)
                self._train()
            else:
                self._update(reducer, outcomes)
                self._open("over", None)

    # --- phases -----------------------------------------------------------------------------------------------

    def _open(self, phase: Phase, job: Job | None) -> None:
        self.phase, self.job, self._gathering = phase, job, None
        if job is not None:
            self.bytes_down += job.work.nbytes_of(job.clients)

    def _welcome(self, reducer: Reducer, outcomes: Sequence[Outcome]) -> None:
        """Take in what new clients answered; nobody may fail to."""
        assert self.job is not None
        replies, refused = reducer.result(), refusals(outcomes)
        if replies is None or refused:
            self._unusable(refused or dict.fromkeys(self.job.clients, "it has no weight"))
        self.state = self.method.welcome(self.state, replies)
        if missing := {*self.job.clients} - {outcome.client for outcome in outcomes}:  # they stay strangers
            there = [client for client in self.cohort.clients if client not in missing]
            self.cohort = replace(self.cohort, clients=there)

    def _train(self) -> None:
        clients, factors, channel = self.cohort.clients, self.cohort.factors, self.channel
        work, expected = self.method.broadcast(self.state, clients), self.method.expects(self.state)
        if channel is not None:
            work = telling(work, channel, self.told)
        if self.down is not None and clients:
            fields = self.method.broadcasts
            work, self.spread = self.down.sent(work, fields, clients, self.seed, self.number, self.spread)
        equal = factors is not None or (channel is not None and channel.equal)
        self._open(
            "train",
            Job(
                self.method, work, clients, self.number, self.seed, expected, self.cohort.epochs,
                cohort=len(clients), channel=channel, factors=factors or {},
                weights=dict.fromkeys(clients, 1.0) if equal else self.population.weights,
            ),
        )  # fmt: skip
        if not clients:
            self.close()

    def _update(self, reducer: Reducer, outcomes: Sequence[Outcome]) -> None:
        assert self.job is not None
        self.outcomes = list(outcomes)
        replies, refused = reducer.result(), self.refused
        if self.down is not None:
            here = {*self.job.clients}
            self.spread = self.down.heard(self.spread, [o.client for o in outcomes if o.client in here])
        if refused and len(refused) == len(outcomes):
            self._unusable(refused)
        if replies is not None:
            if self.channel is not None:
                self.told, replies = self.channel.learn(self.told, replies)
            self.kept = replies.kept
            self.state = stepped(self.method, self.population, self.state, replies, self.number)
            if (carried := self.method.carried(self.state)) is not None:
                self.bytes_up = self.bytes_down = carried

    def _unusable(self, refused: Mapping[int, str]) -> NoReturn:
        raise unusable(refused, self.number, self._name)


def telling(work: Work, channel: Channel, told: Record) -> Work:
    """The work, with what clients are told of the channel in it."""
    news = channel.tell(told)
    return replace(work, shared=work.shared.replace(channel=news)) if news else work


def stepped(
    method: Method,
    population: Population,
    state: Record,
    replies: Replies,
    number: int,
    update: Callable[[Record, Replies], Record] | None = None,
) -> Record:
    """The server's state after it has learned from replies, by `update` in the place of the method's.

    Raises DivergedError where the model leaves the finite numbers.
    """
    state = method.refine((update or method.update)(state, replies), population)
    params, _ = method.model(state)
    sums = [value.sum().float() for value in params.values()]
    total = float(torch.stack(sums).sum())  # one answer to wait for, however many parameters
    if not math.isfinite(total) and not all(map(finite, params.values())):
        raise diverged(number, "the updated model has non-finite numbers")
    return state


def unusable(refused: Mapping[int, str], number: int, name: Callable[[int], object]) -> RunError:
    """The error of a round of which every reply was refused, for these reasons by client, or none counted."""
    if not refused:
        return RunError(f"round {number}: no reply had a weight; the model stays as it was")
    reasons = Counter(refused.values()).most_common(1)[0]
    names = ", ".join(str(name(client)) for client in list(refused)[:5])
    message = f"round {number}: all {len(refused)} replies were refused; the model stays as it was"
    detail = f"clients {names}{' ...' if len(refused) > 5 else ''}: {reasons[0]}"
    if any("finite" in reason for reason in refused.values()):
        return diverged(number, f"every client's update was refused ({detail})")
    return RunError(f"{message} ({detail})")


def diverged(number: int, what: str) -> DivergedError:
    """The error of a run whose model left the finite numbers."""
    return DivergedError(
        f"round {number}: the run diverged: {what}; the last finite model is kept",
        hint="lower lr (or server_lr), or set clip",
    )


def refusals(outcomes: Sequence[Outcome]) -> dict[int, str]:
    """Clients whose replies could not be used, and why."""
    return {outcome.client: outcome.refused for outcome in outcomes if outcome.refused is not None}
