"""Peers one by one: the readable twin of the stacked update, as a peer on a network works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from atoll.contract import Population, Replies, Reply
from atoll.methods import Decentralised
from atoll.task import Task
from atoll.tensors import Record, Tensors


def net() -> nn.Module:
    """A small model with buffers and a counter."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def begun(method: Decentralised, peers: int, seed: int = 3) -> Record:
    """The state before the first round."""
    return method.setup(Task(net(), "cross_entropy"), Population(peers, seed=seed))


def replied(state: Record, method: Decentralised, there: Sequence[int], draw: torch.Generator) -> Replies:
    """Replies of peers that moved at random from what they were sent."""
    work, each = method.broadcast(state, there), []
    for peer in there:
        got = work.received(peer)
        params = got.params.map(lambda v: v + 0.1 * torch.randn(v.shape, generator=draw))
        floats = Tensors(
            {
                n: v + torch.rand(v.shape, generator=draw)
                for n, v in got.buffers.items()
                if v.is_floating_point()
            }
        )
        counters = Tensors({n: v + 1 for n, v in got.buffers.items() if n not in floats})
        steps = torch.tensor(float(1 + peer % 3))
        values = Record(params=params, buffers=floats, counters=counters)
        each.append(Reply(values, torch.tensor(5.0), Record(loss=steps, count=steps, steps=steps)))
    return Replies(list(there), 5.0 * len(there), each=each)


def one_by_one(method: Decentralised, state: Record, replies: Replies) -> dict[int, Record]:
    """The values of the peers that took part, each made by itself from what came over its links."""
    there, graphs = replies.clients, method.graphs(state)
    rows = method.trained(state, replies)
    own = [_row(state.peers, peer) for peer in there]
    trained = [
        Record({n: v[at] if isinstance(v, torch.Tensor) else v for n, v in rows.items()})
        for at in range(len(there))
    ]
    packed = [method.pack(one, work) for one, work in zip(own, trained, strict=True)]
    offered = [method.unpack(one, sent) for one, sent in zip(own, packed, strict=True)]
    values = offered
    for weights in method.exchanges(graphs, state.round, there):
        values = [
            method.combine([values[other] for other in weights.of_peer(at).peers], weights.of_peer(at), at)
            for at in range(len(there))
        ]
    return {
        peer: method.settle(own[at], trained[at], offered[at], values[at]) for at, peer in enumerate(there)
    }


def _row(stacked: Record, at: int) -> Record:
    return Record({name: value[at].clone() for name, value in stacked.items()})


def same(state: Record, peer: int, values: Record) -> Any:
    """Whether the state has these values of a peer, to the bit."""
    return state.peers.keys() == values.keys() and all(
        torch.equal(state.peers[name][peer], value) for name, value in values.items()
    )
