"""Methods without a server: peers train as clients do, and mix their models with those of their neighbours.

A round is local work, then one exchange of what `offer` gives (a few in turn on some topologies), then `settle`. These
two are written for ONE peer, whose values are vectors; as they work number by number, they are what a peer on a network
calls, and, with all peers' vectors as rows of one tensor, what a simulation calls. In between stands the mixing:
`combine` for one peer, which has heard its neighbours, and `Mixture.all` for all rows. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import Change, ClientData, Model, Population, Program, Replies, Reply, Work
from atoll.methods.fedavg import FedAvg
from atoll.methods.neighbours.masked import HIDDEN, check_graph, check_method
from atoll.methods.neighbours.related import Related
from atoll.methods.parts.buffers import form
from atoll.methods.parts.settings import require
from atoll.task import Task
from atoll.tensors import Record, Tensors, nbytes
from atoll.topology import Mixture, Row, Sums, Topology, Weights, topology
from atoll.topology.given import Link
from atoll.topology.mixing import largest
from atoll.topology.topology import read

__all__ = ["Decentralised", "flat", "put", "rows", "unflat"]


def flat(tensors: Tensors) -> Tensor:
    """All numbers in one vector, at least float32."""
    found = tensors.flat()
    return found if found.dtype == torch.float64 else found.float()


def unflat(like: Tensors, vector: Tensor) -> Tensors:
    """The inverse of `flat`: tensors of these shapes and types; views where the types are alike."""
    parts = like.unflat(vector)
    return parts.map_names(lambda name, value: value.to(like[name].dtype))


@dataclass(frozen=True, kw_only=True)
class Decentralised(FedAvg):
    """What methods without a server have in common; `offer` and `settle` say what one does.

    client:  x_k trained as FedAvg's clients train, from the peer's own model
    mixing:  what peers offer is mixed with the weights of the round's graph

    A peer's own values are a record of vectors: `model` [d], `buffers` [b], and what `outset` adds, [d] or [1]. A peer
    that is absent in a round keeps what it has, and its neighbours count their own the more (`Weights.among`).
    Everybody predicts with its own model; the global model is the mean of those that have taken part, for reference.

    Args:
        topology: who hears whom: "ring", "torus", "complete", "star", "exponential", "one-peer", "base:1" ...
            (`atoll topologies` lists them), or "related:2", the two whose data are most like a peer's own.
        mixing: how what is heard is mixed: "plain", for peers that lie "clipped:TAU", "trimmed:FEW", or "masked", where
            a peer learns the sum of what its neighbours offer, and nothing of any one of them.
    """

    topology: str = "ring"
    mixing: str = "plain"

    reduction: ClassVar[Literal["mean", "each"]] = "each"
    change: ClassVar[Change | None] = Change("params", since="params")
    broadcasts: ClassVar[tuple[str, ...]] = ()
    cost: ClassVar[str] = "1 model to each neighbour"
    host: ClassVar[tuple[str, ...]] = ("met", "links", "near")
    relation: ClassVar[str] = "likeness of sketches"

    sums: ClassVar[Sums] = "both"
    """Which sums of the weights must be 1 (see `atoll.topology.Sums`)."""

    plain: ClassVar[bool] = True
    """Whether only plain mixing makes sense."""

    most: ClassVar[tuple[str, ...]] = ()
    """Fields of what is offered of which the largest counts, and not a mean."""

    apart: ClassVar[str] = ""
    """Why a peer must have what each neighbour offers by itself; empty where the sum by weight is enough."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = self.rule
        fits = rule.sums or not self.plain
        require(self, "mixing", fits, "must be plain or masked: more than models is mixed here")
        read(self.topology)
        if rule.masked:
            check_method(type(self).__name__, self.apart, self.topology, self.kin is not None)

    @property
    def kin(self) -> Related | None:
        """By what neighbours are found where these are to be related; None for graphs that are known before."""
        return Related.of(self.topology)

    def programs(self) -> Mapping[str, Program]:
        return {} if self.kin is None else {"sketch": self.kin.sketch}

    # ---- one peer ----------------------------------------------------------------------------------------

    def outset(self, model: Tensor) -> Record:
        """What a peer has beside its model before the first round."""
        return Record()

    def start(self, own: Record) -> Tensor:
        """The model that a peer trains from, and predicts with."""
        return own.model  # type: ignore[no-any-return]

    def told(self, own: Record) -> Record:
        """What a peer's local work is told beside its model: vectors [d]."""
        return Record()

    def offer(self, own: Record, trained: Record) -> Record:
        """What a peer offers its neighbours: vectors.

        Args:
            own: its values before the round.
            trained: what local work came to: `model` and `buffers`; `steps` [1], those it took; `lr`, a number; `key`
                [1], a random stream of this peer and round.
        """
        return Record(model=trained.model, buffers=trained.buffers)

    def pack(self, own: Record, trained: Record) -> Record:
        """What travels to a neighbour, who makes what was offered of it by `unpack`."""
        return self.offer(own, trained)

    def unpack(self, known: Record, packed: Record) -> Record:
        """What a neighbour offers, from what travelled and what was `known` of it: what it offered before."""
        return packed

    def settle(self, own: Record, trained: Record, offered: Record, mixed: Record) -> Record:
        """A peer's values after the round.

        Args:
            own, trained: as `offer` has them.
            offered: what it offered.
            mixed: what is left of that and of what neighbours offered.
        """
        return own.replace(model=mixed.model, buffers=mixed.buffers)

    def combine(self, offers: Sequence[Record], row: Row, peer: int) -> Record:
        """What a peer makes of its own offer and those it hears, in the order of `row.peers`: one exchange."""
        rule, own = self.rule, row.peers.index(peer)
        fields = {name: [each[name] for each in offers] for name in offers[0]}
        return Record(
            {
                name: largest(values) if name in self.most else rule.one(values, row.weights, own)
                for name, values in fields.items()
            }
        )

    def exchanges(self, graphs: Topology, round: int, there: Sequence[int]) -> tuple[Weights, ...]:
        """The exchanges of a round, in turn, among the peers that are there (numbered anew, in their order)."""
        return tuple(self.among(each, there) for each in graphs.exchanges(round, self.sums))

    def among(self, weights: Weights, there: Sequence[int]) -> Weights:
        """An exchange among the peers that are there; with masks nobody hears one alone, whose value the sum is."""
        found = weights.among(there, self.sums)
        return found.least(HIDDEN, self.sums) if self.rule.masked else found

    @property
    def rule(self) -> Mixture:
        """How what is heard is mixed."""
        return Mixture.parse(self.mixing)

    def message(self, offered: Record) -> int:
        """Bytes of what one peer sends to one neighbour; `offered` is of one peer."""
        return 4 * sum(value.numel() for value in offered.values()) if self.rule.masked else nbytes(offered)

    def traffic(self, state: Record, cohort: Sequence[int]) -> Mapping[int, tuple[int, int]]:
        one, there = self.bytes_of_one(state), list(cohort)
        heard, sent = np.zeros(len(there), np.int64), np.zeros(len(there), np.int64)
        for weights in self.exchanges(self.graphs(state), state.round, there):
            to, source, _ = weights.entries
            links = to != source
            heard += np.bincount(to[links], minlength=len(there))
            sent += np.bincount(source[links], minlength=len(there))
        return {peer: (int(heard[at]) * one, int(sent[at]) * one) for at, peer in enumerate(there)}

    def bytes_of_one(self, state: Record) -> int:
        """Bytes of what a peer sends to one neighbour, whatever it learns."""
        own = rows(state.peers, [0])
        ones = torch.ones_like(own.model[:, :1])
        model = self.start(own)
        trained = Record(model=model, buffers=own.buffers, steps=ones, lr=1.0, key=ones.long())
        return self.message(rows(self.offer(own, trained), [0]))

    # ---- all peers: the simulation -----------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        count = population.clients
        graphs = topology(self.topology, count, population.seed, tuple(map(str, population.names)))
        self.exchanges(graphs, 0, range(count))  # says what does not fit
        if self.rule.masked:
            check_graph(graphs, self.sums)
        model, floats, counters = flat(state.params), *_parts(state.buffers)
        own = Record(model=model, buffers=flat(floats), **self.outset(model))
        links = [
            (each.source, each.to, -1.0 if each.weight is None else each.weight) for each in graphs.links
        ]
        return state.replace(
            peers=Record({name: value.repeat(count, 1) for name, value in own.items()}),
            counters=counters.map(lambda value: value.expand(count, *value.shape).clone()),
            met=torch.zeros(count, dtype=torch.bool),
            links=torch.tensor(links, dtype=torch.float64).reshape(-1, 3),
            seed=population.seed,
            carried=0,
            **({} if self.kin is None else self.kin.begin()),
        )

    def enrol(self, state: Record, cohort: Sequence[int]) -> tuple[Sequence[int], Work] | None:
        return None if self.kin is None else self.kin.enrol(state, cohort)

    def welcome(self, state: Record, replies: Replies) -> Record:
        assert self.kin is not None
        return self.kin.welcome(state, replies)

    def affinity(self, state: Record) -> tuple[list[int], Tensor] | None:
        return None if self.kin is None else self.kin.affinity(state)

    def graphs(self, state: Record) -> Topology:
        """Who hears whom."""
        links = tuple(
            Link(int(source), int(to), None if weight < 0 else weight)
            for source, to, weight in state.links.tolist()
        )
        return topology(self.topology, len(state.met), state.seed, links=links)

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        lr = super().broadcast(state, cohort).shared.lr
        chosen = list(cohort)
        some = rows(state.peers, chosen)
        told = Record(params=self.start(some), **self.told(some))
        own = {}
        for at, peer in enumerate(chosen):
            vectors = {name: unflat(state.params, value[at]) for name, value in told.items()}
            counters = state.counters.map(lambda value, peer=peer: value[peer])
            own[peer] = Record(vectors, buffers=_whole(state.buffers, some.buffers[at], counters))
        return Work(Record(lr=lr), own)

    def update(self, state: Record, replies: Replies) -> Record:
        there = replies.clients
        own, trained = rows(state.peers, there), self.trained(state, replies)
        offered = self.offer(own, trained)
        rule, mixed, carried = self.rule, offered, 0
        one = self.message(rows(offered, [0]))
        for weights in self.exchanges(self.graphs(state), state.round, there):
            mixed = Record(
                {name: rule.all(value, weights, name in self.most) for name, value in mixed.items()}
            )
            carried += weights.links * one
        new = self.settle(own, trained, offered, mixed)
        counters = Tensors(
            {
                name: torch.stack([each.values.counters[name] for each in replies.each])
                for name in state.counters
            }
        )
        met = state.met.clone()
        met[there] = True
        state = state.replace(
            peers=Record(put(state.peers, there, new)),
            counters=Tensors(put(state.counters, there, counters)),
            met=met,
            round=state.round + 1,
        )
        return self.told_of(state, carried)

    def told_of(self, state: Record, carried: int) -> Record:
        """The state that knows how many bytes of models, and before them of sketches, peers sent each other."""
        if self.kin is not None:
            carried, state = carried + state.said, state.replace(said=0)
        return state.replace(carried=carried)

    def trained(self, state: Record, replies: Replies) -> Record:
        """What local work came to, of all that replied, in rows."""
        values = [each.values for each in replies.each]
        keys = seeds.addresses(state.seed, "offer", state.round, replies.clients)
        device = state.peers.model.device
        steps = [each.metrics.steps.reshape(1) for each in replies.each]
        return Record(
            model=_stack(state.params, [each.params for each in values]),
            buffers=_stack(_parts(state.buffers)[0], [each.buffers for each in values]),
            steps=torch.stack(steps).to(state.peers.model),
            lr=float(super().broadcast(state, []).shared.lr),
            key=torch.tensor(keys, device=device).reshape(-1, 1),
        )

    def leave(self, state: Record, clients: Sequence[int]) -> Record:
        met = state.met.clone()
        met[list(clients)] = False
        state = state.replace(met=met)
        return state if self.kin is None else self.kin.leave(state, clients)

    def expects(self, state: Record) -> Record:
        return Record(params=state.params, **form(state.buffers))

    def model(self, state: Record) -> Model:
        """The mean of the models of peers that have taken part; nobody predicts with it."""
        peers = state.met.nonzero().flatten().tolist()
        if not peers:
            return state.params, state.buffers
        some = rows(state.peers, peers)
        model, floats = _mean(self.start(some)), _mean(some.buffers)
        counters = state.counters.map(lambda value: value[peers].amax(0))
        return unflat(state.params, model), _whole(state.buffers, floats, counters)

    def consensus(self, state: Record) -> float | None:
        """How far models are apart: sqrt((1/n) sum_i |x_i - mean x|^2), over the peers that have taken part."""
        peers = state.met.nonzero().flatten().tolist()
        if not peers:
            return 0.0
        models = self.start(rows(state.peers, peers))
        mean, total = _mean(models), 0.0
        for row in models:  # one after the other: nothing as large as all of them is made
            total += float(torch.linalg.vector_norm(row - mean)) ** 2
        return float((total / len(peers)) ** 0.5)

    def carried(self, state: Record) -> int | None:
        return int(state.carried)

    # ---- client half -------------------------------------------------------------------------------------

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        floats, counters = _parts(local.buffers)
        return reply._replace(values=Record(params=local.params, buffers=floats, counters=counters)), memory

    def personal(self, received: Record, memory: Record) -> Model:
        return received.params, received.buffers


# --- rows -----------------------------------------------------------------------------------------------------------


def _stack(like: Tensors, each: Sequence[Tensors]) -> Tensor:
    """`flat` of each, in rows, written once."""
    first = flat(like)
    found = first.new_empty(len(each), len(first))
    for row, tensors in zip(found, each, strict=True):
        for part, name in zip(row.split([value.numel() for value in like.values()]), like, strict=True):
            part.copy_(tensors[name].reshape(-1))
    return found


def rows(stacked: Record, peers: Sequence[int]) -> Record:
    """The rows of these peers; the tensors themselves where they are all."""
    return Record(
        {name: value if len(peers) == len(value) else value[list(peers)] for name, value in stacked.items()}
    )


def put(stacked: Mapping[str, Tensor], peers: Sequence[int], rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stack with these rows in it."""
    found = {}
    for name, value in rows.items():
        if len(peers) < len(stacked[name]):
            found[name] = stacked[name].clone()
            found[name][list(peers)] = value
        else:
            found[name] = value
    return found


def _mean(rows: Tensor) -> Tensor:
    """The mean of the rows, as a product that reads them once."""
    return torch.full((len(rows),), 1 / len(rows), dtype=rows.dtype, device=rows.device) @ rows


def _parts(buffers: Tensors) -> tuple[Tensors, Tensors]:
    """Floating-point buffers, and counters."""
    floats = Tensors({name: value for name, value in buffers.items() if value.is_floating_point()})
    return floats, Tensors({name: value for name, value in buffers.items() if name not in floats})


def _whole(buffers: Tensors, vector: Tensor, counters: Mapping[str, Tensor]) -> Tensors:
    """Buffers of this form, out of a vector of the floating-point ones and the counters."""
    floats = unflat(_parts(buffers)[0], vector)
    return buffers.map_names(lambda name, value: floats[name] if name in floats else counters[name])
