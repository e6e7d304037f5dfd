"""Canaries: made-up clients in some rounds, and what the released sums say about which of them were there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.attacks.lying import honest
from atoll.audit.bounds import epsilon_lower
from atoll.audit.claims import DELTA
from atoll.audit.skipped import Skipped
from atoll.audit.view import asked
from atoll.channel import Chain, Clip, Noise, SecAgg
from atoll.channel.masked import RING, SHARES
from atoll.contract import Around, Channel, Job, Method, Replies, Reply
from atoll.engines.client import Client
from atoll.federation import Federation
from atoll.rounds.memories import MemoryStore
from atoll.rounds.round import ServerRound, stepped
from atoll.task import architecture
from atoll.tensors import Record, Tensors, map_leaves

__all__ = ["CONFIDENCE", "LIMIT", "Canaries", "plant"]

CONFIDENCE = 0.95
LIMIT = 1.0
"""The epsilon that a bound must not pass where the run reports none."""

_FEW = 16  # canaries, from which a bound can say something
_LONG = 1e6  # times a bound: the channel cuts it to the bound


@dataclass(frozen=True)
class Canaries:
    """What canaries showed.

    `epsilon_lower` is a lower bound on epsilon, at `confidence`, of the rounds that were played, and so of all; of
    `guesses` about whether a canary was there `right` were. `reported` is the epsilon that the run reports at `delta`,
    None where it reports none.
    """

    epsilon_lower: float
    reported: float | None
    canaries: int
    guesses: int
    right: int
    rounds: int
    delta: float
    confidence: float = CONFIDENCE

    @property
    def succeeded(self) -> bool:
        """Whether more is given away than is reported, or than `LIMIT` where nothing is."""
        return self.epsilon_lower > (LIMIT if self.reported is None else self.reported)

    def to_dict(self) -> dict[str, object]:
        """As plain values."""
        return {
            "epsilon_lower": round(self.epsilon_lower, 4),
            "confidence": self.confidence,
            "canaries": self.canaries,
            "guesses": self.guesses,
            "right": self.right,
            "rounds": self.rounds,
        }


def plant(
    federation: Federation,
    *,
    reported: float | None = None,
    delta: float = DELTA,
    rounds: int = 10,
    most: int = 200,
) -> Canaries:
    """A lower bound on epsilon from one training of the federation, from its beginning.

    Canaries are clients whose update is a random direction, as long as the channel lets through (without a bound, as
    long as a client's). Each is there or not by a fair coin; those that are there send it, through the client half of
    the channel, beside the clients of the rounds, and the server half sums, blurs and releases as in any run. The sum
    of released changes points along a canary that was there.   Andrew et al., ICLR 2024

    A quarter of the canaries, those it points along most, are guessed to have been there, the quarter it points along
    least not to; the bound is that of Steinke et al. (see `epsilon_lower`), which is sound. Behind noise a canary is in
    a round by the chance that a client has, else in every round. Noise from a known seed is no noise here.

    Args:
        reported: the epsilon that the run reports at `delta`.
        rounds: at most so many rounds are played. A bound for some of the rounds holds for all.
        most: canaries, at most one for four parameters.

    Raises Skipped where the server does not sum changes of the model.
    """
    method, change = federation.method, federation.method.change
    if method.reduction == "each" or change is None or type(method).reducer is not Method.reducer:
        raise Skipped("the server of this method does not average what clients send")
    garden = _Garden(federation, most)
    guesses = garden.count // 4 * 2
    played = min(rounds, federation.rounds)
    for number in range(1, played + 1):
        garden.grow(number)
    score = garden.scores()
    order = np.argsort(score, kind="stable")
    half = guesses // 2
    right = int(garden.there[order[-half:]].sum() + (~garden.there[order[:half]]).sum())
    bound = epsilon_lower(garden.count, guesses, right, delta=delta, confidence=CONFIDENCE)
    return Canaries(bound, reported, garden.count, guesses, right, played, delta)


class _Garden:
    """The rounds of a federation with canaries in them, beside the federation: nothing of it is touched."""

    def __init__(self, federation: Federation, most: int) -> None:
        self.federation, self.simulation = federation, federation.simulation
        self.method, self.seed = federation.method, federation.seed
        self.channel = revealed(honest(self.simulation.channel))
        self.state, self.memories = self.simulation.state, MemoryStore()
        self.told = Record() if self.channel is None else self.channel.begin()
        self.choice = self.simulation.cohorts.choice.begin(len(federation.data))
        first = asked(federation, 0, self.channel)
        assert self.method.change is not None
        form = first.expected.get(self.method.change.field)
        if not isinstance(form, Tensors) or not form:
            raise Skipped("what clients send has no known form")
        self.form: Tensors = form
        self.count = min(most, form.size() // 4, _room(self.channel, federation.cohort))
        if self.count < _FEW:
            raise Skipped(f"there is room for {self.count} canaries, and {_FEW} are needed")
        rng = seeds.rng(self.seed, "audit canaries")
        self.there = rng.random(self.count) < 0.5
        self.rng = rng
        self.total = torch.zeros(form.size(), dtype=torch.float64)
        self.length = _LONG if _bounded(self.channel) else self._typical(first)
        noisy = (
            isinstance(self.channel, Chain)
            and self.channel.noise is not None
            and bool(self.channel.noise.multiplier)
        )
        self.rate = min(1.0, federation.cohort / len(federation.data)) if noisy else 1.0

    def grow(self, number: int) -> None:
        """Play a round."""
        data, method = self.federation.data, self.method
        cohort, self.choice = self.simulation.cohorts.enlist(number, self.choice)
        round = ServerRound(
            method, self.simulation.population, self.state, cohort, number, self.seed, channel=self.channel,
            told=self.told, name=data.names.__getitem__,
        )  # fmt: skip
        while round.phase == "enrol":
            assert round.job is not None
            round.settle(*self.simulation.engine.run(round.job, self.memories))
        coins = self.rng.random(self.count) < self.rate
        self.state, self.told = round.state, round.told
        if round.job is None:  # nobody was asked
            return
        job = round.job
        reducer, _ = self.simulation.engine.run(job, self.memories)
        self.memories.commit()
        for canary in np.flatnonzero(self.there & coins):
            reducer.add(len(data) + int(canary), self._reply(job, int(canary)))
        replies = reducer.result()
        if replies is None:
            return
        if self.channel is not None:
            self.told, replies = self.channel.learn(self.told, replies)
        self.total += self._released(job, replies)
        known = [client for client in replies.clients if client < len(data)]
        with seeds.scoped(self.seed, "settle train", number):
            self.state = stepped(
                method, self.simulation.population, self.state, replace(replies, clients=known), number
            )

    def scores(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """How far what was released points along each canary."""
        return np.array([float(self.total @ self.direction(k).double()) for k in range(self.count)])

    def direction(self, canary: int) -> Tensor:
        """A canary's direction [numbers in the change], of length 1: the same whenever it is asked for."""
        generator = torch.Generator().manual_seed(seeds.address(self.seed, "audit canary", 0, canary))
        drawn = torch.randn(self.form.size(), generator=generator)
        unit: Tensor = drawn / torch.linalg.vector_norm(drawn)
        return unit

    def _reply(self, job: Job, canary: int) -> Reply:
        """What a canary sends, behind the client half of the channel."""
        assert self.method.change is not None
        data = self.federation.data
        received = job.work.shared
        device = next(iter(self.form.values())).device
        direction = (self.direction(canary) * self.length).to(device)
        like = map_leaves(torch.zeros_like, job.expected)
        memory = job.program.recall(self.federation.task, received, None)
        own = memory.method if isinstance(job.program, Around) else memory
        values = self.method.change.put(self.form.unflat(direction), like, received, own)
        weight = torch.tensor(float(np.mean([data.size(k) for k in job.clients])), device=device)
        reply = Reply(values, weight, Record())
        if isinstance(job.program, Around):
            key = torch.tensor(seeds.address(self.seed, "audit send", job.round, canary), device=device)
            reply, _ = job.program.send(reply, received, own, memory.channel, key)
        if job.weights is None:
            return reply
        return reply._replace(weight=weight.new_tensor(np.mean([float(job.weights[k]) for k in job.clients])))

    def _released(self, job: Job, replies: Replies) -> Tensor:
        """How far what the server releases moves the model, as one vector."""
        received = job.work.shared
        memory = job.program.recall(self.federation.task, received, None)
        assert self.method.change is not None
        own = memory.method if isinstance(job.program, Around) else memory
        found = self.method.change.of(replies.mean, received, own)
        assert found is not None
        return found.flat().double().cpu()

    def _typical(self, job: Job) -> float:
        """How long the change is that a client sends where nothing happens to it on the way."""
        plain = replace(job, channel=None)
        task = self.simulation.tasks[architecture(0, len(self.simulation.tasks))]
        device = self.simulation.judge.device
        answer, _ = Client(task, self.federation.data, device).answer(plain.order(0), plain.program, None)
        received = plain.work.received(0)
        change = plain.changed(answer.reply.values, received, plain.program.recall(task, received, None))
        assert change is not None
        return float(change.norm())


def revealed(channel: Channel | None) -> Channel | None:
    """The channel as somebody sees it who knows every seed: noise that follows from one is taken off."""
    if not isinstance(channel, Chain):
        return channel
    return Chain(
        [
            replace(e, multiplier=0.0, blur=0.0) if isinstance(e, Noise) and not e.private else e
            for e in channel.transforms
        ],
        channel.setting,
    )


def _bounded(channel: Channel | None) -> bool:
    """Whether the channel shortens what is too long."""
    transforms = channel.transforms if isinstance(channel, Chain) else ()
    return any(isinstance(each, Clip) and math.isfinite(each.norm) for each in transforms)


def _room(channel: Channel | None, cohort: int) -> int:
    """How many more than a cohort the ring of secure sums has room for."""
    hides = (
        [each for each in channel.transforms if isinstance(each, SecAgg)]
        if isinstance(channel, Chain)
        else []
    )
    if not hides:
        return 1 << RING
    most = (1 << (RING - hides[0].bits)) // (SHARES if hides[0].weighted else 1)
    return most - cohort
