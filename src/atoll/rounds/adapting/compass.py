"""Local steps with which clients arrive together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.rounds.adapting.rule import Numbers, Rule, Seen, Wish
from atoll.rounds.choosing import Learned
from atoll.tensors import Record

__all__ = ["Compass"]

_SLACK = 1e-9  # times are sums of seconds


class _Group(NamedTuple):
    """Orders under way: when they are expected [F], the seconds that their clients need a step, and steps planned."""

    due: Numbers
    pace: Numbers
    planned: NDArray[np.int64]

    def fastest(self) -> Numbers:
        """For every order, when the fastest of those that arrive with it could be back after all that is planned, [F].

        An order arrives with another that is due later by less than one of its own steps: it would have done another.
        """
        later = self.due[:, None] - self.due[None, :]
        together = (later < self.pace[None, :]) & (later >= -_SLACK * (1 + np.abs(self.due[:, None])))
        first = np.argmin(np.where(together, self.pace[None, :], np.inf), axis=1)
        return np.asarray(self.due + self.pace[first] * self.planned[first])


@dataclass(frozen=True)
class Compass(Rule):
    """Clients arrive in groups, slow ones after few steps and fast ones after many.   FedCompass: Li et al., ICLR 2024

    Of all steps planned, Q_max, a client takes Q, from Q_min = `least` Q_max on:

        first order   Q_min, with which the server measures S, the seconds that the client needs a step
        join          Q = floor((T - now) / S) in Q_min .. Q_max, for a group that is expected at T; of several the most
        found         with none to join, the most Q <= Q_max with which it arrives when the fastest j of a group could
                      be back from its next order, at T + S_j Q_max; Q_max if there is none, and at least Q_min

    S is what the last order took that was used, with waiting, download and upload, over its steps (their code keeps a
    moving mean). A group is nothing but the orders under way that are expected at the same time, within a step of
    theirs, so that there is nothing else to remember. Nobody's speed is known before its first reply was used. Of
    clients asked at the same moment those come first that would be done with everything first.

    Ours: the pace says when the server takes a step, `buffered:K`, where theirs waits for a group up to a latest time
    of arrival. Theirs has every client at work, `concurrency` as many as there are, and the same Q_max for all.
    """

    least: float = 0.2
    name: ClassVar[str] = "compass"
    clocked: ClassVar[bool] = True
    flights: ClassVar[bool] = True

    def begin(self) -> Record:
        return Record(clients=torch.zeros(0, dtype=torch.int64), pace=torch.zeros(0, dtype=torch.float64))

    def plan(self, state: Record, seen: Seen) -> Wish:
        known = dict(zip(state.clients.tolist(), state.pace.tolist(), strict=True))
        rows = [
            (each.began + known[each.client] * each.steps, known[each.client], each.planned)
            for each in seen.away
            if each.client in known
        ]
        steps = {}
        clients = zip(seen.clients.tolist(), seen.steps.tolist(), strict=True)
        for client, planned in sorted(clients, key=lambda each: known.get(each[0], 0.0) * each[1]):
            least = max(1, math.ceil(self.least * planned - _SLACK))
            chosen = least
            if client in known:
                chosen = _chosen(rows, seen.time, known[client], least, planned)
                rows.append((seen.time + known[client] * chosen, known[client], planned))
            if chosen < planned:
                steps[client] = chosen
        return Wish(steps)

    def learn(self, state: Record, learned: Learned, time: float) -> Record:
        if learned.steps is None:
            return state
        told = learned.answered & np.isfinite(learned.seconds) & (learned.steps > 0)
        now = dict(zip(state.clients.tolist(), state.pace.tolist(), strict=True))
        pace = learned.seconds[told] / learned.steps[told]
        now |= dict(zip(learned.clients[told].tolist(), pace.tolist(), strict=True))
        return state.replace(
            clients=torch.tensor(list(now), dtype=torch.int64),
            pace=torch.tensor(list(now.values()), dtype=torch.float64),
        )


def _chosen(rows: list[tuple[float, float, int]], now: float, pace: float, least: int, most: int) -> int:
    """The steps of a client that needs `pace` seconds for one, beside orders (due, pace, steps planned)."""
    ahead = [row for row in rows if row[0] > now - row[1]]  # those a little late are about to arrive
    if not ahead or not pace > 0:
        return most
    due, paces, planned = zip(*ahead, strict=True)
    group = _Group(np.array(due), np.array(paces), np.array(planned))

    def until(times: Numbers) -> Numbers:
        return np.asarray(np.floor((times - now) / pace + _SLACK))

    joined = until(group.due)
    joined = joined[(joined >= least) & (joined <= most)]
    if len(joined):
        return int(np.max(joined))
    found = until(group.fastest())
    found = found[found <= most]
    return max(least, int(np.max(found))) if len(found) else most
