"""Client work as it travels: a round's job for a cohort, one client's order, and its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoll.contract.around import Around
from atoll.contract.change import Change
from atoll.contract.messages import Reply, Work
from atoll.contract.method import Method, Program
from atoll.contract.reduce import Reducer, Replies
from atoll.contract.validation import ON_VALIDATION, OnValidation
from atoll.tensors import Record, Tensors, map_leaves, nbytes

__all__ = ["Answer", "Channel", "Job", "Memories", "Order", "Outcome", "Outer", "inmost", "refilled"]


class Memories(Protocol):
    """Where clients' memories live between rounds."""

    def get(self, client: int) -> Record | None: ...

    def put(self, client: int, memory: Record) -> None: ...


class Channel:
    """What happens to updates on their way from client to server; by itself nothing.

    The client half is put around the programs that clients run (see `Around`), and may have a memory of its own beside
    theirs. The server half is put around the reducer that takes the replies, and may have a state of its own beside the
    method's. Channels are equal where they do the same (frozen dataclasses).
    """

    @property
    def equal(self) -> bool:
        """Whether all clients count the same in averages, whatever their replies say."""
        return False

    @property
    def hides(self) -> bool:
        """Whether nobody but the client can read what it sends."""
        return False

    @property
    def always(self) -> bool:
        """Whether the server takes a step even where nobody was asked, so that nobody can tell."""
        return False

    def begin(self) -> Record:
        """The server's state of it before the first round."""
        return Record()

    def tell(self, state: Record) -> Record:
        """What clients are told of it: they receive it as `channel` beside what the method sends."""
        return Record()

    def program(self, name: str, inner: Program, change: Change | None) -> Around:
        """The program of that name with the client half around it; a plain `Around` where there is nothing to do.

        Programs must be hashable and equal where they do the same (frozen dataclasses), for steps to be captured once.
        """
        return Around(inner, change)

    @property
    def codecs(self) -> int:
        """Codecs that updates may go through, one of them each; 0: nobody need choose."""
        return 0

    def taking(self, work: Work, client: int) -> Channel:
        """The channel with the codecs that this client was told to take."""
        return self

    def nbytes(self, values: Record) -> int:
        """Bytes that the values of a reply, as they are sent, take on the wire."""
        return nbytes(values)

    @property
    def varies(self) -> bool:
        """Whether bytes on the wire follow from the numbers, and not from the form alone."""
        return False

    def sent(self, values: Record) -> int:
        """Bytes that these values of a reply took on the wire; `nbytes` is the most where that varies, about."""
        return self.nbytes(values)

    def reducer(self, job: Job, inner: Reducer) -> Reducer:
        """What takes the replies to this job."""
        return inner

    def learn(self, state: Record, replies: Replies) -> tuple[Record, Replies]:
        """The state after a round, and its replies as the method is to have them."""
        return state, replies


@dataclass(frozen=True)
class Outer(Channel):
    """A channel around another one, which does what that does where nothing else is said.

    Args:
        channel: the one inside.
    """

    channel: Channel = Channel()  # noqa: RUF009 - it has no state

    @property
    def equal(self) -> bool:
        return self.channel.equal

    @property
    def hides(self) -> bool:
        return self.channel.hides

    @property
    def always(self) -> bool:
        return self.channel.always

    def begin(self) -> Record:
        return self.channel.begin()

    def tell(self, state: Record) -> Record:
        return self.channel.tell(state)

    def program(self, name: str, inner: Program, change: Change | None) -> Around:
        return self.channel.program(name, inner, change)

    @property
    def codecs(self) -> int:
        return self.channel.codecs

    def taking(self, work: Work, client: int) -> Channel:
        return replace(self, channel=self.channel.taking(work, client))

    def nbytes(self, values: Record) -> int:
        return self.channel.nbytes(values)

    @property
    def varies(self) -> bool:
        return self.channel.varies

    def sent(self, values: Record) -> int:
        return self.channel.sent(values)

    def reducer(self, job: Job, inner: Reducer) -> Reducer:
        return self.channel.reducer(job, inner)

    def learn(self, state: Record, replies: Replies) -> tuple[Record, Replies]:
        return self.channel.learn(state, replies)


def inmost(channel: Channel | None) -> Channel | None:
    """What is inside of all that is around it."""
    while isinstance(channel, Outer):
        channel = channel.channel
    return channel


def refilled(channel: Channel, inner: Channel) -> Channel:
    """The same channels around another one in the place of the `inmost`."""
    return replace(channel, channel=refilled(channel.channel, inner)) if isinstance(channel, Outer) else inner


class Order(NamedTuple):
    """What one client is asked to do in a round.

    `epochs` are local epochs where they are not what the program plans; `limit` cuts it short after so many steps.
    Random draws of the client have the address (seed, purpose, round, client).
    """

    client: int
    round: int
    seed: int
    program: str
    received: Record
    epochs: int | None = None
    limit: int | None = None

    def to_record(self) -> Record:
        """As what a codec writes."""
        return Record(self._asdict())

    @staticmethod
    def of_record(record: Record) -> Order:
        """The inverse of `to_record`."""
        return Order(**record)


class Answer(NamedTuple):
    """What one client came back with: its `reply`, and a few coordinates of its change where drift is watched.

    `nbytes` are those that the reply's values took on the way, where whoever has the answer knows.
    """

    client: int
    reply: Reply
    probe: Tensor | None = None
    nbytes: int | None = None

    def to_record(self) -> Record:
        """As what a codec writes: client and reply. The rest is the receiver's, or for simulations."""
        return Record(client=self.client, reply=self.reply.to_record())

    @staticmethod
    def of_record(record: Record) -> Answer:
        """The inverse of `to_record`."""
        return Answer(record.client, Reply.of_record(record.reply))


@dataclass(frozen=True)
class Job:
    """One round's client work: who runs which program on what.

    `clients` are positions in the population, sorted. `epochs` holds the local epochs of those that do fewer than
    planned. `expected` is the form a reply must have unless the work says otherwise.
    """

    method: Method
    work: Work
    clients: Sequence[int]
    round: int
    seed: int
    expected: Record = field(default_factory=Record)
    epochs: Mapping[int, int] = field(default_factory=dict)
    limit: int | None = None
    """Cut every client short after so many steps (for trials)."""

    cohort: int = 1
    """How many clients the whole round has (a worker's job holds some of them)."""

    channel: Channel | None = None

    weights: Mapping[int, float] | NDArray[np.float64] | None = None
    """By client, what its reply counts for in an average, where that is not what the reply says."""

    limits: Mapping[int, int] = field(default_factory=dict)
    """By client, after how many steps it stops, where it has no time for all that are planned."""

    factors: Mapping[int, float] = field(default_factory=dict)
    """By client, what the change in its reply is multiplied by where it is a difference (see `Method.change`): less
    for one that comes late, more for one that is seldom asked."""

    @cached_property  # every client's order asks for it
    def program(self) -> Program:
        """What the clients run."""
        name, on_validation, _ = self.work.program.partition(ON_VALIDATION)
        inner = self.method.program(name)
        if on_validation:
            inner = OnValidation(inner)
        return inner if self.channel is None else self.channel.program(name, inner, self.method.change)

    def reducer(self) -> Reducer:
        """A new reducer for the replies."""
        inner = self.method.reducer(self.work)
        return inner if self.channel is None else self.channel.reducer(self, inner)

    def changed(self, values: Record, received: Record, memory: Record) -> Tensors | None:
        """How far a client's model moved, from its reply and what it was given; None where the method does not say."""
        if self.method.change is None or (self.channel is not None and self.channel.hides):
            return None
        return self.method.change.of(values, received, memory if self.channel is None else memory.method)

    def weighed(self, clients: Sequence[int], reply: Reply) -> Reply:
        """A client's reply, or those of several stacked [K, ...], with the weight and the factor it is to have.

        A reply without weight, of a client that has done nothing, keeps none.
        """
        if self.factors and any(self.factors.get(client, 1.0) != 1.0 for client in clients):
            reply = self._scaled(clients, reply)
        if self.weights is None:
            return reply
        given = reply.weight.new_tensor([float(self.weights[client]) for client in clients])
        return reply._replace(
            weight=torch.where(reply.weight > 0, given.reshape(reply.weight.shape), reply.weight)
        )

    def _scaled(self, clients: Sequence[int], reply: Reply) -> Reply:
        """A reply, or several stacked, with the change in it times the clients' factors, where it is a difference."""
        change = self.method.change
        if change is None or change.since is not None:
            return reply
        factors = [self.factors.get(client, 1.0) for client in clients]
        stacked = reply.weight.ndim > 0

        def times(value: Tensor) -> Tensor:
            by = value.new_tensor(factors if stacked else factors[0])
            return value * (by.reshape(-1, *(1,) * (value.ndim - 1)) if stacked else by)

        return reply._replace(
            values=reply.values.replace(**{change.field: map_leaves(times, reply.values[change.field])})
        )

    def nbytes(self, values: Record, client: int) -> int:
        """Bytes that a client uploads with these values; the channel acts on what training sends."""
        if self.channel is None or self.work.program != "train":
            return nbytes(values)
        return self.channel.taking(self.work, client).nbytes(values)

    @property
    def varies(self) -> bool:
        """Whether bytes of uploads follow from their numbers."""
        return self.channel is not None and self.work.program == "train" and self.channel.varies

    def sent(self, values: Record, client: int) -> int:
        """Bytes that a client has uploaded with these values, before anything was done to them here."""
        if self.channel is None or not self.varies:
            return self.nbytes(values, client)
        return self.channel.sent(values)

    def form(self, client: int) -> Record:
        """The form that this client's reply must have."""
        return self.work.forms.get(client, self.expected)

    def order(self, client: int) -> Order:
        """What one of the clients is asked."""
        work, limit = self.work, self.limits.get(client)
        if self.limit is not None:
            limit = self.limit if limit is None else min(limit, self.limit)
        return Order(
            client, self.round, self.seed, work.program, work.received(client), self.passes(client), limit
        )

    def passes(self, client: int) -> int | None:
        """A client's local epochs, where they are not what the program plans."""
        epochs, more = self.epochs.get(client), self.work.passes.get(client, 0)
        return (self.program.plan().epochs if epochs is None else epochs) + more if more else epochs


@dataclass(frozen=True)
class Outcome:
    """How one client's work ended: its pooled sums (of some metrics rows), and why its reply was refused, if it was."""

    client: int
    weight: float
    metrics: Mapping[str, Any]
    nbytes: int
    refused: str | None = None
    begun: float = 0.0
    """When the work began and ended, by `time.perf_counter`, which processes of one machine share."""
    ended: float = 0.0
    probe: Tensor | None = field(default=None, compare=False)
    """A few coordinates of the update (see `atoll.engines.probe`); of refused replies None."""
