"""The server's half of a chain: the sum over a round's clients, and what leaves of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch

from atoll.channel.noise import Noise
from atoll.channel.transform import Setting, Transform, Vector
from atoll.contract import Job, Mean, Reducer, Replies, Reply, Rule
from atoll.tensors import Record, map_leaves, named_tensors

__all__ = ["Release", "Together", "packed", "unpacked"]


def packed(values: Record) -> Vector:
    """All numbers that a client sends, behind one another, in the order of their names; its whole weight last."""
    return np.concatenate(
        [value.cpu().numpy().reshape(-1) for _, value in sorted(_named(values), key=_place)]
    )


def unpacked(vector: Vector, form: Record) -> Record:
    """The inverse of `packed`, for values of this form; whole numbers stay int64."""
    flat, at, found = torch.from_numpy(vector), 0, {}
    for place, value in sorted(_named(form), key=_place):
        part = flat[at : at + value.numel()].reshape(value.shape)
        found[place] = part.to(value.dtype) if part.is_floating_point() else part.to(torch.int64)
        at += value.numel()
    places = iter([place for place, _ in _named(form)])
    return map_leaves(lambda _: found[next(places)], form)  # type: ignore[no-any-return]


def _place(named: tuple[tuple[bool, str], torch.Tensor]) -> tuple[bool, str]:
    return named[0]


def _named(values: Record) -> list[tuple[tuple[bool, str], torch.Tensor]]:
    return [((name == "channel.weight", name), value) for name, value in named_tensors(values)]


class Release(Mean):
    """A mean whose sum passes through the server halves of transforms before it is divided.

    Behind noise it is divided by the expected cohort, and it is there even where nobody came: who did is a secret.
    Hidden updates come with their weights multiplied in, and are only added up; a sum of fewer clients than the floor
    is not taken.

    Args:
        rules: what becomes of fields that are not averaged.
        transforms: those of the chain.
        setting: what is known of the run.
        job: what the clients were asked.
    """

    def __init__(
        self, rules: Mapping[str, Rule], transforms: Sequence[Transform], setting: Setting, job: Job
    ) -> None:
        super().__init__(rules)
        self.transforms, self.setting, self.job = transforms, setting, job
        self.hidden = any(each.sums for each in transforms)
        self.floor = max(each.floor for each in transforms)
        self.secret = any(isinstance(each, Noise) for each in transforms)

    def rule(self, name: str) -> Rule:
        return "sum" if self.hidden or name == "channel" else super().rule(name)

    def add_stacked(self, clients: Sequence[int], replies: Reply) -> None:
        if not self.hidden:
            super().add_stacked(clients, replies)
            return
        self._count(clients, float(replies.weight.sum()))
        self._plus(
            map_leaves(lambda v: v.sum(0, dtype=v.dtype), replies.values)
        )  # wraps around as the ring does

    def result(self) -> Replies | None:
        if not self.secret:
            return None if self.few else super().result()
        total = self._nothing() if self.total is None or self.few else self.total
        self.total = None
        return Replies(sorted(self.clients), float(self.setting.cohort), self.finish(total))

    @property
    def few(self) -> bool:
        """Whether the sum is of so few clients that it is not taken."""
        return len(self.clients) < self.floor

    def _nothing(self) -> Record:
        """What is summed where nobody came: the form of a sum."""
        zeros = map_leaves(lambda v: v.new_zeros(v.shape), self.job.expected)
        reports = [each.nothing() for each in self.transforms]
        return zeros.replace(channel=Record({k: v for each in reports for k, v in each.items()}))  # type: ignore[no-any-return]

    def finish(self, total: Record) -> Record:
        told = self.job.work.shared.get("channel", Record())
        for each in reversed(self.transforms):  # the last to hide is the first to open
            total = each.release(total, told, self.job)
        weight = self.weight
        if self.secret:
            weight = float(self.setting.cohort)
        elif self.hidden:
            weight = float(total.channel.weight)
        found = Record(
            {
                name: map_leaves(lambda t: t / weight, part)
                if super(Release, self).rule(name) == "mean"
                else part
                for name, part in total.items()
                if name != "channel"
            }
        )
        if self.narrow and not self.hidden:
            kinds = Record({name: self.narrow[name] for name in found})
            found = map_leaves(lambda t, kind: t.to(kind.dtype), found, kinds)
        return found.replace(channel=total.channel) if "channel" in total else found


class Together(Release):
    """A release for which the server needs what all clients sent, at once: a protocol is played over it.

    Where clients are on machines of their own they play it with the coordinator, which hands in the sum (`summed`).
    """

    def __init__(
        self, rules: Mapping[str, Rule], transforms: Sequence[Transform], setting: Setting, job: Job
    ) -> None:
        super().__init__(rules, transforms, setting, job)
        self.each: dict[int, Record] = {}

    def add(self, client: int, reply: Reply) -> None:
        self._count([client], float(reply.weight))
        self.each[client] = map_leaves(torch.clone, reply.values)

    def add_stacked(self, clients: Sequence[int], replies: Reply) -> None:
        Reducer.add_stacked(self, clients, replies)

    def merge(self, part: Self) -> None:
        self._count(part.clients, part.weight)
        self.each |= part.each

    def held(self) -> Record:
        each = Record({str(client): values for client, values in self.each.items()})
        return super().held().replace(each=each)

    def take(self, held: Record) -> None:
        super().take(held)
        self.each |= {int(client): values for client, values in held.each.items()}

    @property
    def few(self) -> bool:
        return self.total is None

    @property
    def size(self) -> int:
        """Numbers in a vector."""
        return sum(value.numel() for _, value in named_tensors(self._nothing()))

    def summed(self, clients: Sequence[int], weight: float, vector: Vector) -> None:
        """Take the sum over these clients of what they sent (`packed`), int64 [size]; `weight` is their replies'."""
        self._count(clients, weight)
        self.total = unpacked(vector, self._nothing())

    def result(self) -> Replies | None:
        sum_of = next(each.together for each in self.transforms if each.together is not None)
        there = {c: values for c, values in sorted(self.each.items()) if int(values.channel.weight > 0)}
        if there and len(there) >= self.floor:
            vector = sum_of({c: packed(values) for c, values in there.items()}, self.job)
            self.total = unpacked(vector, next(iter(there.values())))
        return super().result()
