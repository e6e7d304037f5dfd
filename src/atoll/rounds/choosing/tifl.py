"""Clients of one speed at a time, and more often those that the model serves badly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from atoll.errors import ConfigError
from atoll.tensors import Record

from .contract import Ask, Choice, Chosen, Floats, Ints, Learned, chosen
from .drawing import changed, evenly
from .uniform import Uniform

__all__ = ["TiFL"]


@dataclass(frozen=True)
class TiFL(Choice):
    """Tiers of clients by expected seconds; a round is one tier's, so that nobody in it waits for a slower one.

    Chai et al., "TiFL: A Tier-based Federated Learning System" (HPDC 2020), section 4: tiers, and adaptive choice of a
    tier (Algorithm 2). Tiers are equally large, sorted when the first round is drawn; who comes later goes to the tier
    that its seconds fall into. A tier is drawn by its probability among those that have credits left, and pays one;
    clients of it have the same chance. Every few rounds, where the tier drawn last has got no better since the last
    time, probabilities become proportional to 1 / accuracy of the tiers (of their clients, where rounds are evaluated
    on clients), or else to their mean training loss; a tier of which nothing is known counts as the worst.

    Of our own: that rule, for the ChangeProbs of the algorithm; where a tier has too few that are there,
    the rest comes from the next faster ones, then from the next slower; when no tier has credits left, each gets as
    many as at first. One tier is the choice `uniform`, to the bit.

    Args:
        tiers: how many.
        credits: rounds that each tier is good for; any number without.
        every: rounds between changes of the probabilities.
    """

    tiers: int
    credits: int | None = None
    every: int = 10

    name = "tifl"

    def begin(self, clients: int) -> Record:
        """Tiers of clients (-1: none yet) and what is known of each tier."""
        unknown = torch.full((self.tiers,), torch.nan, dtype=torch.float64)
        return Record(
            tier=torch.full((clients if self.tiers > 1 else 0,), -1, dtype=torch.int64),
            edges=unknown[1:],
            credits=torch.full((self.tiers,), self.credits or 0, dtype=torch.int64),
            chance=torch.full((self.tiers,), 1 / self.tiers, dtype=torch.float64),
            accuracy=unknown,
            loss=unknown,
            before=unknown,
            current=-1,
            rounds=0,
        )

    def draw(self, state: Record, ask: Ask) -> Chosen:
        """Raises ConfigError where nothing is known of devices, and there are several tiers."""
        if self.tiers == 1:
            return Uniform().draw(state, ask)
        state = self._sorted(state, ask)
        chance = state.chance.numpy()
        if self.credits is not None:
            if not state.credits.any():
                state = state.replace(credits=torch.full_like(state.credits, self.credits))
            chance = chance * (state.credits.numpy() > 0)
        current = int(ask.rng("tier").choice(self.tiers, p=chance / chance.sum()))
        if self.credits is not None:
            left = int(state.credits[current]) - 1
            state = state.replace(credits=changed(state.credits, np.array([current]), left))
        rng, tier = ask.rng(), state.tier.numpy()
        found = np.empty(0, np.int64)
        for each in (*range(current, -1, -1), *range(current + 1, self.tiers)):
            missing = ask.count - len(found)
            if missing:
                members = ask.members(np.flatnonzero(tier == each))
                found = np.concatenate([found, evenly(rng, members, missing, ask.there)])
        return chosen(found, state.replace(current=current))

    def _sorted(self, state: Record, ask: Ask) -> Record:
        """The state in which everybody who may take part has a tier."""
        clients = ask.everyone()
        clients = clients[state.tier.numpy()[clients] < 0]
        if not len(clients):
            return state
        seconds = ask.seconds(clients)
        edges = state.edges.numpy()
        if not np.isnan(edges).any():
            tier: Ints = np.searchsorted(edges, seconds, side="right")
            return state.replace(tier=changed(state.tier, clients, tier))
        if not seconds.any():
            raise ConfigError(
                "choose: tifl sorts clients by the seconds that they take, and nothing is known of their devices",
                hint="set devices, or write tifl:1",
            )
        order = np.argsort(seconds, kind="stable")
        starts = np.arange(1, self.tiers) * len(clients) // self.tiers
        tier = np.searchsorted(starts, np.arange(len(clients)), side="right")
        found = changed(state.tier, clients[order], tier)
        return state.replace(tier=found, edges=torch.from_numpy(seconds[order][starts].astype(np.float64)))

    def learn(self, state: Record, learned: Learned) -> Record:
        """What tiers are like, and every few rounds how likely each is to be drawn."""
        if self.tiers == 1:
            return state
        told, by_client = learned.told, learned.accuracy or {}
        tier = state.tier.numpy()
        loss = _means(state.loss, tier[learned.clients[told]], learned.loss[told])
        judged = np.fromiter(by_client, np.int64, len(by_client))
        values = np.fromiter(by_client.values(), np.float64, len(by_client))
        accuracy = _means(state.accuracy, tier[judged], values)
        state = state.replace(
            loss=torch.from_numpy(loss), accuracy=torch.from_numpy(accuracy), rounds=state.rounds + 1
        )
        if state.rounds % self.every:
            return state
        badness = 1 / np.maximum(accuracy, 0.01) if np.isfinite(accuracy).any() else loss
        if not np.isfinite(badness).any() or not np.nanmax(badness) > 0:
            return state
        worst = np.nanmax(badness)
        badness = np.where(np.isnan(badness), worst, badness)
        badness = np.maximum(badness, 1e-3 * worst)  # one without any loss is drawn now and then
        better = badness[state.current] < state.before.numpy()[state.current]  # the first time it is not
        state = state.replace(before=torch.from_numpy(badness))
        return state if better else state.replace(chance=torch.from_numpy(badness / badness.sum()))


def _means(known: torch.Tensor, tier: Ints, values: Floats) -> Any:
    """The mean of the values that belong to each tier; what was known, where there are none."""
    tier, values = tier[tier >= 0], values[tier >= 0]
    number = np.bincount(tier, minlength=len(known))
    total = np.bincount(tier, values, minlength=len(known))
    return np.where(number > 0, total / np.maximum(number, 1), known.numpy())
