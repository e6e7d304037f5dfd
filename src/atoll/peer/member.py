"""One peer's half of a method without a server: its values, its local work, and what it makes of what it hears."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from atoll import codec
from atoll.channel import Chain
from atoll.codec import Form, Limits
from atoll.contract import Job, Order, Population, Replies, Reply, Work
from atoll.data import FederatedData
from atoll.engines.client import Client
from atoll.engines.padding import Padding
from atoll.engines.sequential import Sequential
from atoll.errors import CodecError
from atoll.methods.neighbours.decentralised import Decentralised
from atoll.peer.sayings import Plain, WithheldError
from atoll.privacy.source import Source
from atoll.rounds.judging import figures, measures, totals
from atoll.rounds.round import telling
from atoll.task import Task
from atoll.tensors import Record, Tensors, finite, leaves
from atoll.topology import Fixed, Weights, topology
from atoll.topology.fixed import within
from atoll.topology.weights import Row

__all__ = ["Member"]

_SLACK = 1 << 16  # bytes of a message beyond those of one that is known


class Member:
    """One peer of a method without a server.

    It computes what a simulation computes for it, in the same order and so to the bit, but sees nothing of others than
    what they send. All values but `known` are those after the last round.

    Args:
        data: of which client `number` is here.
        names: of all peers, in the order of their numbers.
        written: whether steps are taken as they are written, and not captured.
        channel: what happens to its model on the way, fitted.
        secret: 32 bytes from which noise is drawn; None: it follows from the seed, and protects nobody. A round that
            is played again draws the same, and so tells no more.

    `own` are its vectors, `counters` the whole numbers of its model, `known` what others offered last, by number,
    where that is needed to read what they send. Where neighbours are to be related, `graphs` has no links until it has
    heard the sketches of all (`relate`).
    """

    def __init__(
        self,
        method: Decentralised,
        task: Task,
        data: FederatedData,
        number: int,
        names: Sequence[str],
        seed: int,
        written: bool = False,
        channel: Chain | None = None,
        secret: bytes | None = None,
    ) -> None:
        self._channel, self._secret = channel, secret
        self.method, self.task, self.data, self.number, self.seed = method, task, data, number, seed
        self.graphs = topology(method.topology, len(names), seed, tuple(names))
        self.phases = len(method.exchanges(self.graphs, 0, range(len(names))))
        state = method.setup(task, Population(len(names), (task,), seed=seed, names=names))
        self.count = len(names)
        self.kin = method.kin is not None
        """Whether who is whose neighbour follows from what all tell each other before the first round."""
        self._first = Record({name: value[number].clone() for name, value in state.peers.items()})
        """What every peer is taken to have offered before it has spoken: they all begin alike."""
        self.own = self._first
        self.counters = state.counters.map(lambda value: value[number].clone())
        self._state = self._unrelated = state.replace(
            peers=Record(), counters=Tensors(), met=torch.ones(1, dtype=torch.bool)
        )
        self.packs = type(method).pack is not Decentralised.pack
        """Whether what travels is less than what is offered, and says it only to who has heard what came before."""
        self.known: dict[int, Record] = {}
        self.masked = method.rule.masked
        """Whether others hear shares of sums, and no values."""
        device = torch.device("cpu")
        self._client = (Client if written else Sequential)(task, data, device)
        self._padding = None if written else Padding(task, data, device)
        self._trained = self._offered = Record()
        self._counted = self.counters
        self.device = device

    # --- who is related ---------------------------------------------------------------------------------------

    @property
    def acquainted(self) -> bool:
        """Whether it knows the graph."""
        return not self.kin or len(self._state.links) > 0

    def sketch(self) -> Record:
        """What it tells of its data before the first round (`methods.neighbours.related`); the same at every time.

        Noise in it is drawn from the secret, where there is one.
        """
        asked = self.method.enrol(self._unrelated, [self.number])
        assert asked is not None
        seed = self.seed
        if self._secret is not None:
            seed = int.from_bytes(hashlib.sha256(self._secret + b"sketch").digest()[:4], "little")
        job = Job(self.method, replace(asked[1], reduction="each"), [self.number], 1, seed)
        answer, _ = self._client.answer(job.order(self.number), job.program, None)
        return answer.reply.values

    def read_sketch(self, body: bytes, mine: Record) -> Record:
        """That of another one.  Raises CodecError for anything else, numbers that are not finite among it."""
        found = codec.decode(body, Form.of(mine), Limits(nbytes=len(body)))
        if not finite(found.sketch):
            raise CodecError("it has numbers that are not finite")
        return found

    def relate(self, sketches: Mapping[int, Record]) -> None:
        """Know who is whose neighbour, from the sketches of all by number: the same at every peer."""
        each = [Reply(sketches[number], torch.ones(()), Record()) for number in range(self.count)]
        state = self.method.welcome(
            self._unrelated, Replies([*range(self.count)], float(self.count), each=each)
        )
        self._linked(state.links)

    def _linked(self, links: Tensor) -> None:
        self._state = self._unrelated.replace(links=links)
        self.graphs = self.method.graphs(self._state.replace(met=torch.zeros(self.count)))

    # --- local work -------------------------------------------------------------------------------------------

    def train(self, round: int) -> float | None:
        """The local work of a round, from 1; its mean training loss. What it offers is there afterwards."""
        method, rows = self.method, self._rows(round)
        sent = method.broadcast(rows, [0])
        work, channel = Work(sent.shared, {self.number: sent.own[0]}), self._channel
        if channel is not None:
            work = telling(work, channel, channel.begin())
            if self._secret is not None:
                key = hashlib.sha256(self._secret + round.to_bytes(8, "little")).digest()
                channel = channel.drawing(Source(key))
        job = Job(method, work, [self.number], round, self.seed, method.expects(rows), channel=channel)
        if self._padding is not None and isinstance(self._client, Sequential):
            self._client.padded = not self._padding.seen(job, _Nothing())
        order: Order = job.order(self.number)
        answer, _ = self._client.answer(order, job.program, None)
        came = method.trained(rows, Replies([self.number], float(answer.reply.weight), each=[answer.reply]))
        self._trained = Record(
            {name: value[0] if torch.is_tensor(value) else value for name, value in came.items()}
        )
        self._counted = answer.reply.values.counters
        self._offered = method.offer(self.own, self._trained)
        sums = answer.reply.metrics
        count = float(sums.count) if "count" in sums else 0.0
        return float(sums.loss) / count if count else None

    def _rows(self, round: int) -> Record:
        """This peer's values as a simulation of it alone would have them."""
        return self._state.replace(
            round=round - 1,
            peers=Record({name: value.unsqueeze(0) for name, value in self.own.items()}),
            counters=self.counters.map(lambda value: value.unsqueeze(0)),
        )

    # --- exchanges --------------------------------------------------------------------------------------------

    def weights(self, round: int, phase: int, there: Sequence[int]) -> Weights:
        """Who hears whom in an exchange of a round, from 1, among those that are there."""
        return self.method.exchanges(self.graphs, round - 1, there)[phase]

    def hears(self, round: int, phase: int, there: Sequence[int]) -> list[int]:
        """Whom this peer hears in it."""
        at = list(there).index(self.number)
        return [there[each] for each in self.weights(round, phase, there).hears(at)]

    def message(self, values: Record, first: bool) -> Plain:
        """What it says in an exchange: as it travels, and whole, for who has missed something.

        Args:
            values: what it offers, or what it made of that in the exchange before.
            first: whether this is the first exchange of the round.
        """
        whole = codec.encode(values)
        packed = codec.encode(self.method.pack(self.own, self._trained)) if self.packs and first else whole
        return Plain(packed, whole)

    def share(self, round: int, phase: int, values: Record, receiver: int, others: Sequence[int]) -> Tensor:
        """What it adds to the sum that a receiver makes of what these peers have, it among them: int32, field by field.

        Raises WithheldError where the receiver does not hear these, or so few that the sum would tell.
        """
        there = sorted({receiver, *others})
        at, row = self._row(round, phase, there, receiver)
        if [there[place] for place in row.peers if place != at] != sorted(others):
            raise WithheldError("it does not hear these, or too few of them for a sum")
        fixed = Fixed.of(self.method.rule.range, row.weights, row.peers.index(at))
        return self._shares(fixed, values, row.weights[row.peers.index(there.index(self.number))])

    def _shares(self, fixed: Fixed, values: Record, weight: float) -> Tensor:
        return torch.cat([fixed.share(value, weight) for value in values.values()])

    def _row(self, round: int, phase: int, there: Sequence[int], peer: int) -> tuple[int, Row]:
        """A peer's place among those that are there, and whom it hears."""
        at = list(there).index(peer)
        return at, self.weights(round, phase, there).of_peer(at)

    def check(self, values: Record) -> None:
        """Whether masks can carry what it is about to say.  Raises RunError."""
        for value in values.values():
            within(value, self.method.rule.range)

    @property
    def most(self) -> int:
        """Bytes that a message of another one may have."""
        return len(codec.encode(self._offered)) + _SLACK

    def read(self, number: int, body: bytes, whole: bool) -> Record:
        """What another one offers, its `share` where there are masks.

        Raises CodecError for anything else, numbers that are not finite among it.
        """
        if self.masked:
            size = sum(value.numel() for value in self._offered.values())
            form = Form.of(Record(share=torch.zeros(size, dtype=torch.int32)))
            return codec.decode(body, form, Limits(nbytes=self.most))
        if whole or not self.packs:
            found = codec.decode(body, Form.of(self._offered), Limits(nbytes=self.most))
        else:
            form = Form.of(self.method.pack(self.own, self._trained))
            packed = codec.decode(body, form, Limits(nbytes=self.most))
            found = self.method.unpack(self.known.get(number, self._first), packed)
        if not all(finite(value) for value in leaves(found) if torch.is_tensor(value)):
            raise CodecError("it has numbers that are not finite")
        return found

    def mixed(
        self, round: int, phase: int, there: Sequence[int], mine: Record, heard: Mapping[int, Record]
    ) -> Record:
        """What it makes of its own values and those of others by number; all it hears among `there` are in it.

        Raises CodecError where shares do not add up.
        """
        at, row = self._row(round, phase, there, self.number)
        if self.masked and len(row.peers) > 1:
            return self._added(row, row.peers.index(at), mine, [each.share for each in heard.values()])
        values = [mine if place == at else heard[there[place]] for place in row.peers]
        return self.method.combine(values, row, at)

    def _added(self, row: Row, own: int, mine: Record, shares: Sequence[Tensor]) -> Record:
        """The sum of all shares: masks are gone from it."""
        fixed = Fixed.of(self.method.rule.range, row.weights, own)
        total = self._shares(fixed, mine, row.weights[own])
        for share in shares:
            total.add_(share)
        parts = torch.split(total, [value.numel() for value in mine.values()])
        return Record({name: fixed.opened(part, mine[name]) for name, part in zip(mine, parts, strict=True)})

    def settle(self, mixed: Record) -> None:
        """The round is over."""
        self.own = self.method.settle(self.own, self._trained, self._offered, mixed)
        self.counters = self._counted

    @property
    def offered(self) -> Record:
        """What it offers in this round."""
        return self._offered

    # --- what it is worth -------------------------------------------------------------------------------------

    def judged(self) -> dict[str, float]:
        """Figures of its model on its own test data; {} where there are none."""
        samples = self.data.samples(self.number, "test")
        if samples is None or not samples.count:
            return {}
        params, buffers = self.model()
        found = measures(self.task, self.device, params, buffers, samples)
        return figures(self.task, [(samples.count, totals(self.task, found))])

    def model(self) -> Any:
        """The model that this peer predicts with: (params, buffers)."""
        sent = self.method.broadcast(self._rows(1), [0]).own[0]
        return sent.params, sent.buffers

    # --- what is kept -----------------------------------------------------------------------------------------

    def held(self) -> Record:
        """What it goes on from."""
        known = Record({str(number): each for number, each in self.known.items()}) if self.packs else Record()
        related = {"links": self._state.links} if self.kin else {}
        return Record(own=self.own, counters=self.counters, known=known, **related)

    def take(self, held: Record) -> None:
        """Go on from what was `held`."""
        self.own, self.counters = held.own, held.counters
        self.known = {int(number): each for number, each in held.known.items()}
        if self.kin:
            self._linked(held.links)


class _Nothing:
    """Peers remember nothing but their values."""

    def get(self, client: int) -> Record | None:
        return None

    def put(self, client: int, memory: Record) -> None: ...
