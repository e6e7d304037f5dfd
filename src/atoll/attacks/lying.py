"""Where lies are told: between what clients computed and what takes their replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from atoll import seeds
from atoll.attacks.lie import Lie, Seen
from atoll.contract import Channel, Each, Job, Outer, Reducer, Replies, Reply
from atoll.tensors import Record, Tensors, finite, leaves, map_leaves

__all__ = ["Attacked", "Lying", "Scheming", "honest"]


@dataclass(frozen=True)
class Attacked(Outer):
    """A channel some of whose clients lie: what reaches the server of them is a lie, whatever happens on the way.

    Liars do not keep to the client halves of transforms: nobody holds them to a clip norm but the server. What they
    remember, and what they say of their losses, is as if they had been honest.

    Args:
        lie: what liars send.
        liars: the clients that lie.
        share: how many of all clients they are, between 0 and 1.
    """

    lie: Lie = field(kw_only=True)
    liars: frozenset[int] = field(kw_only=True)
    share: float = field(kw_only=True)

    def reducer(self, job: Job, inner: Reducer) -> Reducer:
        """What takes the replies; where they are only kept for a later step of the server, they are as they were."""
        if job.work.program != "train" or isinstance(inner, Each):
            return self.channel.reducer(job, inner)
        kind = Scheming if self.lie.looks else Lying
        return kind(self, job, lambda: self.channel.reducer(job, job.method.reducer(job.work)))

    def learn(self, state: Record, replies: Replies) -> tuple[Record, Replies]:
        if isinstance(replies, Open):
            replies = replies.told(lambda each: self.channel.learn(state, each)[1])
        return self.channel.learn(state, replies)


def honest(channel: Channel | None) -> Channel | None:
    """The channel as it would be if nobody lied."""
    if isinstance(channel, Attacked):
        return channel.channel
    if isinstance(channel, Outer):
        inner = honest(channel.channel)
        assert inner is not None
        return replace(channel, channel=inner)
    return channel


@dataclass
class Open(Replies):
    """Replies among which lies have yet to be told: `told` tells them, given what the server makes of any replies."""

    told: Callable[[Callable[[Replies], Replies]], Replies] = field(kw_only=True)


class _Told:
    """What both reducers do: replies as vectors, and lies in the place of some.

    Args:
        attacked: who lies, and how.
        job: what the clients were asked.
        empty: makes a reducer as there would be without lies.
    """

    def __init__(self, attacked: Attacked, job: Job, empty: Callable[[], Reducer]) -> None:
        super().__init__()
        self.attacked, self.job, self.empty = attacked, job, empty

    def seen(
        self,
        client: int,
        own: Tensor,
        others: Tensor,
        liars: int = 1,
        harm: Callable[[Tensor], float] = lambda _: 0.0,
    ) -> Seen:
        key = seeds.address(self.job.seed, "attack", self.job.round, client)
        return Seen(own, others, liars, self.attacked.share, torch.tensor(key), harm)

    def vector(self, values: Record, client: int) -> Tensor:
        """All numbers in floating point of a reply, behind one another, with the change as a difference [d]."""
        parts = [v.reshape(-1) for v in leaves(self._moved(values, client)) if v.is_floating_point()]
        wide = [part if part.dtype == torch.float64 else part.float() for part in parts]
        return torch.cat(wide) if wide else torch.zeros(0)  # of a method that sends nothing

    def told(self, lie: Tensor, reply: Reply, client: int) -> Reply | None:
        """The reply of a client with this vector in it; None where the server would refuse it."""
        at = 0

        def cut(value: Tensor) -> Tensor:
            nonlocal at
            if not value.is_floating_point():
                return value
            at += value.numel()
            return lie[at - value.numel() : at].reshape(value.shape).to(value.dtype)

        made = map_leaves(cut, self._moved(reply.values, client))
        if not all(finite(value) for value in leaves(made) if value.is_floating_point()):
            return None
        change, start = self.job.method.change, self._start(client)
        if start is not None:
            assert change is not None
            made = change.put(made[change.field], made, start, Record())
        if "channel" in reply.values:
            made = made.replace(channel=reply.values["channel"])
        return reply._replace(values=made)

    def _start(self, client: int) -> Record | None:
        """What the client was sent, where it answers with a whole model."""
        change = self.job.method.change
        return None if change is None or change.since is None else self.job.work.received(client)

    def _moved(self, values: Record, client: int) -> Record:
        """What a client sends, with its change as a difference, without what transforms report."""
        change, start = self.job.method.change, self._start(client)
        found = Record({name: part for name, part in values.items() if name != "channel"})
        if start is not None:
            assert change is not None
            moved = change.of(values, start, Record())
            if isinstance(moved, Tensors):
                return found.replace(**{change.field: moved})
        return found


class Lying(_Told, Reducer):
    """Exchanges replies as they come, where a lie needs to know nobody else's; the rest is up to what stands behind."""

    def __init__(self, attacked: Attacked, job: Job, empty: Callable[[], Reducer]) -> None:
        super().__init__(attacked, job, empty)
        self.inner = empty()

    def _lied(self, client: int, reply: Reply) -> Reply | None:
        if client not in self.attacked.liars:
            return reply
        own = self.vector(reply.values, client)
        lie = self.attacked.lie.sent(self.seen(client, own, own.new_zeros((0, len(own)))))
        return self.told(lie, reply, client)

    def add(self, client: int, reply: Reply) -> None:
        if (sent := self._lied(client, reply)) is not None:
            self._count([client], float(sent.weight))
            self.inner.add(client, sent)

    def add_stacked(self, clients: Sequence[int], replies: Reply) -> None:
        honest = [at for at, client in enumerate(clients) if client not in self.attacked.liars]
        if len(honest) == len(clients):
            self._count(clients, float(replies.weight.sum()))
            self.inner.add_stacked(clients, replies)
            return
        if honest:
            rows = torch.tensor(honest, device=replies.weight.device)
            self.add_stacked([clients[at] for at in honest], map_leaves(lambda v: v[rows], replies))
        for at in sorted({*range(len(clients))}.difference(honest)):
            self.add(clients[at], map_leaves(lambda v, at=at: v[at], replies))

    def merge(self, part: Self) -> None:
        self._count(part.clients, part.weight)
        self.inner.merge(part.inner)

    def merge_one(self, empty: Callable[[], Self], client: int, reply: Reply) -> None:
        if (sent := self._lied(client, reply)) is not None:
            self._count([client], float(sent.weight))
            self.inner.merge_one(self.empty, client, sent)

    def result(self) -> Replies | None:
        return self.inner.result()

    def held(self) -> Record:
        return self.inner.held()

    def take(self, held: Record) -> None:
        self.inner.take(held)
        self.clients, self.weight = self.inner.clients, self.inner.weight


class Scheming(_Told, Each):
    """Keeps all replies, where a lie is made of what the honest clients send: it is told when the server learns."""

    def result(self) -> Replies | None:
        replies = dict(sorted(zip(self.clients, self.replies, strict=True)))
        found = self._reduced(replies)
        liars = [client for client in replies if client in self.attacked.liars]
        if found is None or not liars:
            return found

        def told(server: Callable[[Replies], Replies]) -> Replies:
            return self._reduced(self._sent(replies, liars, server)) or found

        return Open(found.clients, found.weight, told=told)

    def _sent(
        self, replies: Mapping[int, Reply], liars: Sequence[int], server: Callable[[Replies], Replies]
    ) -> Mapping[int, Reply]:
        """What the server gets."""
        honest = [client for client in replies if client not in self.attacked.liars] or liars
        others = torch.stack([self.vector(replies[client].values, client) for client in honest])
        if not others.numel():  # the method sends nothing
            return replies
        weights = torch.tensor([float(replies[client].weight) for client in honest]).to(others)
        mean = weights @ others / weights.sum() if float(weights.sum()) else others.mean(0)

        def sent(lie: Tensor) -> Mapping[int, Reply]:
            told = {client: self.told(lie, replies[client], client) for client in liars}
            found = {client: told.get(client, reply) for client, reply in replies.items()}
            return {client: reply for client, reply in found.items() if reply is not None}

        def harm(lie: Tensor) -> float:
            found = self._reduced(sent(lie))
            return 0.0 if found is None else float((self.vector(server(found).mean, liars[0]) - mean).norm())

        first = liars[0]
        own = self.vector(replies[first].values, first)
        return sent(self.attacked.lie.sent(self.seen(first, own, others, len(liars), harm)))

    def _reduced(self, replies: Mapping[int, Reply]) -> Replies | None:
        inner = self.empty()
        for client, reply in replies.items():
            inner.add(client, reply)
        return inner.result()
