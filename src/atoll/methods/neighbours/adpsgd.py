"""Pairs of neighbours average their models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from atoll import seeds
from atoll.contract import Replies, Reply
from atoll.methods.neighbours.decentralised import put, rows
from atoll.methods.neighbours.dpsgd import DPSGD
from atoll.tensors import Record, Tensors
from atoll.topology import Row, Topology, Weights

__all__ = ["ADPSGD"]


@dataclass(frozen=True, kw_only=True)
class ADPSGD(DPSGD):
    """Train, then average with one neighbour at random.   Lian et al., ICML 2018 (AD-PSGD)

    client:  z_k as in D-PSGD
    mixing:  x_i, x_j <- (z_i + z_j) / 2  for pairs of neighbours at random, nobody in two of them

    In rounds the pairs are a random matching of the graph, drawn by the seed. On the virtual clock with
    `pace = "pairs"` nobody waits for anybody, as in the paper: who is done adds what it learned to its model as it is
    by then, and meets one neighbour that is there, at work or not

    mixing:  x_i <- x_i + (z_i - s_i),   s_i: x_i when the work began;    x_i, x_j <- (x_i + x_j) / 2

    and goes on. Its staleness is how many such steps all peers took meanwhile.
    """

    paper: ClassVar[str] = "Lian et al. 2018 (AD-PSGD)"
    cost: ClassVar[str] = "1 model to one neighbour"
    apart: ClassVar[str] = "of two that meet each has the other's model"
    pairwise: ClassVar[bool] = True

    def exchanges(self, graphs: Topology, round: int, there: Sequence[int]) -> tuple[Weights, ...]:
        return (graphs.pairs(round).among(there),)

    def meet(self, state: Record, replies: Replies, there: Sequence[int]) -> Record:
        (peer,) = replies.clients
        both, here = [peer], set(there)
        others = [other for other in self.graphs(state).neighbours(state.round)[peer] if other in here]
        if others:
            draw = seeds.rng(state.seed, "meeting", state.round, peer)
            both = sorted([peer, others[int(draw.integers(len(others)))]])
        at, own = both.index(peer), rows(state.peers, both)
        trained = self.trained(state, replies)
        offered = [
            Record(model=trained.model[0], buffers=trained.buffers[0])
            if place == at
            else Record(model=own.model[place], buffers=own.buffers[place])
            for place in range(len(both))
        ]
        row = Row(tuple(range(len(both))), (1 / len(both),) * len(both))
        mixed = [self.combine(offered, row, place) for place in range(len(both))]
        new = Record({name: torch.stack([each[name] for each in mixed]) for name in own})
        counted = {name: value.unsqueeze(0) for name, value in replies.each[0].values.counters.items()}
        met = state.met.clone()
        met[both] = True
        return self.told_of(
            state.replace(
                peers=Record(put(state.peers, both, new)),
                counters=Tensors(put(state.counters, [peer], counted)),
                met=met,
                round=state.round + 1,
            ),
            2 * self.message(offered[at]) if others else 0,
        )

    def caught_up(self, state: Record, client: int, reply: Reply, sent: Record) -> Reply:
        now, values = self.broadcast(state, [client]).received(client), reply.values
        params = values.params + (now.params - sent.params)
        buffers = values.buffers.map_names(
            lambda name, value: value + (now.buffers[name] - sent.buffers[name])
        )
        return reply._replace(values=values.replace(params=params, buffers=buffers))
