"""The server's half where clients may lie: updates are kept one by one, and a rule makes one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import Each, Job, Mean, Outer, Reducer, Replies, Reply, Rule
from atoll.errors import RunError
from atoll.robust import Aggregation, Rows
from atoll.tensors import Record, leaves, map_leaves, named_tensors, to_device

__all__ = ["Grouped", "Robust", "Several"]


class Several(Each):
    """Keeps every reply, and takes none where they are fewer than the rule needs.

    Args:
        aggregation: the rule.
        own: what makes the server's own reply, where the rule wants one.
    """

    def __init__(self, aggregation: Aggregation, own: Callable[[], Reply] | None = None) -> None:
        super().__init__()
        self.aggregation, self.own = aggregation, own

    def result(self) -> Replies | None:
        counted = sum(float(reply.weight) > 0 for reply in self.replies)
        found = super().result() if self.aggregation.enough(counted) else None
        if found is not None and self.own is not None:
            found.beside = self.own()
        return found


@dataclass
class Means(Replies):
    """The means of groups of clients, in the place of their replies."""

    groups: list[list[int]] = field(default_factory=list)


class Grouped(Several):
    """Keeps hidden replies, and adds them up group by group, each sum by itself.

    Groups are cut from all that were asked, whoever answers. One in which too few did for a sum is left out. Where
    clients are on machines of their own, each group plays its sum with the coordinator, which hands it in (`put`).

    Args:
        reducer: makes what takes the hidden replies of a group.
        job: what clients were asked.
        seed: the run's.
    """

    def __init__(self, aggregation: Aggregation, reducer: Callable[[], Reducer], job: Job, seed: int) -> None:
        super().__init__(aggregation)
        self.reducer, self.job, self.seed = reducer, job, seed
        self.sums: list[Reducer] = []

    @property
    def parts(self) -> list[list[int]]:
        """The groups, of all that were asked."""
        assert self.aggregation.groups is not None
        asked, draw = sorted(self.job.clients), seeds.rng(self.seed, "groups", self.job.round)
        return [[asked[at] for at in part] for part in self.aggregation.groups.cut(len(asked), draw)]

    def put(self, reducer: Reducer) -> None:
        """Take a group's sum, of a `reducer` that has it."""
        self._count(reducer.clients, reducer.weight)
        self.sums.append(reducer)

    def _added(self) -> list[Reducer]:
        """The sums of the replies that are here."""
        replies, found = dict(zip(self.clients, self.replies, strict=True)), []
        for part in self.parts:
            reducer = self.reducer()
            for client in part:
                if client in replies:
                    reducer.add(client, replies[client])
            found.append(reducer)
        return found

    def result(self) -> Replies | None:
        found = Means(sorted(self.clients), self.weight)
        for reducer in self.sums or self._added():
            group, summed = sorted(reducer.clients), reducer.result()
            if summed is not None:
                found.each.append(Reply(summed.mean, torch.ones(()), Record()))
                found.groups.append(group)
        return found if _after(self.aggregation).enough(len(found.groups)) else None


def _after(aggregation: Aggregation) -> Aggregation:
    """What is done with the means of groups."""
    return Aggregation(aggregation.stages[1:])


@dataclass(frozen=True)
class Robust(Outer):
    """A rule in the place of the mean, around what happens to updates on their way.

    The vector that it is a rule of is all that would be averaged or added up of a reply, joined: SCAFFOLD's control
    variates and BatchNorm's statistics as well as the change of the model, so that nothing is left in which to lie
    unseen. A field that would be added up comes out as many times as there are replies. Counters keep their rule.
    All clients count the same: how many samples somebody has is what it says. Replies without weight count for nothing.

    Its state is a number of steps, for addresses of draws, and, where the rule wants it, what it gave last.

    Args:
        aggregation: the rule, and what stands before it.
        rules: what becomes of fields that are not averaged, as the method declares it.
        seed: the run's.
        root: what makes the server's own reply to a job, of data that it has.
    """

    aggregation: Aggregation = field(kw_only=True)
    rules: tuple[tuple[str, Rule], ...] = ()
    seed: int = 0
    root: Callable[[Job], Reply] | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "root": None}  # workers on other machines do not need the server's data

    @property
    def equal(self) -> bool:
        return True

    def begin(self) -> Record:
        return Record(inner=self.channel.begin(), step=0)

    def tell(self, state: Record) -> Record:
        return self.channel.tell(state.inner)

    def reducer(self, job: Job, inner: Reducer) -> Reducer:
        if type(inner) is not Mean or job.work.program != "train":
            return self.channel.reducer(job, inner)
        if self.channel.hides:
            return Grouped(
                self.aggregation, lambda: self.channel.reducer(job, Mean(inner.rules)), job, self.seed
            )
        return Several(self.aggregation, None if self.root is None else partial(self.root, job))

    def learn(self, state: Record, replies: Replies) -> tuple[Record, Replies]:
        step = state.step + 1
        replies, centre = self._aggregated(replies, step, state.get("centre"))
        inner, replies = self.channel.learn(state.inner, replies)
        return Record(inner=inner, step=step, **({} if centre is None else {"centre": centre})), replies

    def _aggregated(
        self, replies: Replies, step: int, centre: Record | None
    ) -> tuple[Replies, Record | None]:
        """The replies as one, and what is kept of it for the next time."""
        rule, grouped = self.aggregation, isinstance(replies, Means)
        if grouped:
            rule = _after(rule)
        counted = [at for at, each in enumerate(replies.each) if float(each.weight) > 0]
        values = [replies.each[at].values for at in counted]
        form = self._vector(values[0])
        rows = [[*leaves(self._vector(each))] for each in values]
        _check(rows)
        if self.aggregation.beside == "centre":
            last = map_leaves(torch.zeros_like, form) if centre is None else centre
            rows.append([*leaves(to_device(last, rows[0][0].device))])
        if replies.beside is not None:
            rows.append([*leaves(to_device(self._vector(replies.beside.values), rows[0][0].device))])
            _check(rows)
        found = rule.of(Rows(rows), self.seed, step)
        parts = iter(found.parts)
        vector: Record = map_leaves(lambda v: next(parts).to(v.dtype), form)
        if isinstance(replies, Means):
            kept = _shared(replies.groups, found.kept.tolist())
        else:
            kept = dict(zip((replies.clients[at] for at in counted), found.kept.tolist(), strict=True))
        total = {
            name: map_leaves(lambda v: v * len(counted), part) if self._rule(name) == "sum" else part
            for name, part in vector.items()
        }
        mean = Record({**total, **self._rest(values, 1.0 if not grouped else math.inf)})
        new = vector if self.aggregation.beside == "centre" else None
        return Replies(replies.clients, replies.weight, mean, kept=kept), new

    def _rule(self, name: str) -> Rule:
        return dict(self.rules).get(name, "mean")

    def _vector(self, values: Record) -> Record:
        """What the rule is for, of the values of a reply."""
        found = Record(
            {k: part for k, part in values.items() if k != "channel" and self._rule(k) in ("mean", "sum")}
        )
        for name, value in named_tensors(found):
            if not value.is_floating_point():
                raise RunError(
                    f"aggregate = {self.aggregation.text!r}: {name} of the replies holds whole numbers",
                    hint="declare what becomes of the field, such as rules = {NAME: 'max'} in the method",
                )
        return found

    def _rest(self, values: Sequence[Record], most: float) -> Mapping[str, object]:
        """The other fields: counters by their rule, and what transforms report: a share of 1 at most each."""
        mean = Mean({**dict(self.rules), "channel": "sum"})
        for each in values:
            other = {k: part for k, part in each.items() if self._rule(k) == "max"}
            if "channel" in each:
                other["channel"] = map_leaves(lambda v: v.clamp(0, most), each.channel)
            mean.add(0, Reply(Record(other), torch.ones(()), Record()))
        found = mean.result()
        assert found is not None
        return found.mean


def _shared(groups: Sequence[Sequence[int]], kept: Sequence[float]) -> dict[int, float]:
    """What each client counted for, from what its group did."""
    count = sum(map(len, groups))
    return {
        client: share * count / (len(groups) * len(group))
        for group, share in zip(groups, kept, strict=True)
        for client in group
    }


def _check(rows: Sequence[Sequence[Tensor]]) -> None:
    """Whether rows can be compared.  Raises RunError."""
    shapes = [part.shape for part in rows[0]]
    if any([part.shape for part in row] != shapes for row in rows):
        raise RunError(
            "clients' updates differ in form, and a robust rule compares them number by number",
            hint="leave aggregate out",
        )
