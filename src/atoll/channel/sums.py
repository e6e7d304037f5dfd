"""The server's half of a chain: the sum over a round's clients, and what leaves of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch

from atoll.channel.noise import Noise
from atoll.channel.transform import Setting, Transform
from atoll.contract import Job, Mean, Reducer, Replies, Reply, Rule
from atoll.tensors import Record, leaves, map_leaves

__all__ = ["Release", "Together"]


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
        few = len(self.clients) < self.floor
        if not self.secret:
            return None if few else super().result()
        total = self._nothing() if self.total is None or few else self.total
        return Replies(sorted(self.clients), float(self.setting.cohort), self.finish(total))

    def _nothing(self) -> Record:
        """What is summed where nobody came."""
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
    """A release for which the server needs what all clients sent, at once: a protocol is played over it."""

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

    def result(self) -> Replies | None:
        sum_of = next(each.together for each in self.transforms if each.together is not None)
        there = {c: values for c, values in sorted(self.each.items()) if int(values.channel.weight > 0)}
        if len(there) >= self.floor:
            vectors = {
                c: np.concatenate([v.cpu().numpy().reshape(-1) for v in leaves(values)])
                for c, values in there.items()
            }
            flat = torch.from_numpy(sum_of(vectors, self.job))
            like = next(iter(there.values()))
            parts = iter(torch.split(flat, [v.numel() for v in leaves(like)]))
            self.total = map_leaves(
                lambda v: next(parts).reshape(v.shape).to(v.dtype if v.is_floating_point() else torch.int64),
                like,
            )
        return super().result()
