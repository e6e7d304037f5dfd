"""From replies to what the server asked for: reducers, in constant memory where only a mean is needed.

A reducer takes replies as they come (`add`, or `add_stacked` for a batch), takes over what another one has taken
(`merge`, a worker's part), and gives `Replies` (`result`). What it holds is a record (`held`, `take`), so that a part
can cross a process boundary or be stored. A method says which reducer it needs (`Method.reducer`); engines only call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor

from atoll.contract.messages import Reply
from atoll.errors import RunError
from atoll.tensors import Record, leaves, map_leaves, named_tensors

__all__ = ["Each", "Mean", "Reducer", "Replies", "Rule", "Total", "chunks"]

Rule = Literal["mean", "sum", "max"]
"""What becomes of a field of the replies: the mean by weight, the plain sum, or the elementwise maximum."""


@dataclass
class Replies:
    """The accepted replies of a round as a method asked for them: reduced (`mean`), or `each` of them.

    `clients` are sorted; `weight` is their total weight. `mean` has the fields of the replies, each reduced by its
    rule, which is the mean by weight unless the method declares another (`Method.rules`). `kept` is what each client's
    update counted for behind a robust rule, in shares of what it would count for in a mean of all alike: 0 where it was
    left out, 1 as in the mean. `beside` is what the server itself replies, of data of its own, where a rule wants it.
    """

    clients: list[int]
    weight: float
    mean: Record = field(default_factory=Record)
    each: list[Reply] = field(default_factory=list)
    kept: Mapping[int, float] = field(default_factory=dict)
    beside: Reply | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.clients)


class Reducer(ABC):
    """Takes replies, all of them screened. Add in client order for a result that does not depend on who is fastest."""

    def __init__(self) -> None:
        self.clients: list[int] = []
        self.weight = 0.0

    def _count(self, clients: Sequence[int], weight: float) -> None:
        self.clients += clients
        self.weight += weight

    @abstractmethod
    def add(self, client: int, reply: Reply) -> None:
        """Take one reply."""

    def add_stacked(self, clients: Sequence[int], replies: Reply) -> None:
        """Take replies whose tensors are stacked by client, [K, ...]."""
        for at, client in enumerate(clients):
            self.add(client, map_leaves(lambda v, at=at: v[at], replies))

    @abstractmethod
    def merge(self, part: Self) -> None:
        """Take over the replies that another reducer of the same kind has taken; it is used no more."""

    def merge_one(self, empty: Callable[[], Self], client: int, reply: Reply) -> None:
        """Take over a part that has taken this one reply; `empty` makes one."""
        part = empty()
        part.add(client, reply)
        self.merge(part)

    @abstractmethod
    def result(self) -> Replies | None:
        """The reduced replies, or None where nothing was accepted or all weights are zero; to be called once."""

    @abstractmethod
    def held(self) -> Record:
        """All that was taken, as a record of tensors and numbers."""

    @abstractmethod
    def take(self, held: Record) -> None:
        """Take over what another reducer `held`; its tensors are this one's from now on."""


class Total(Reducer):
    """A running total: what replies contribute, put together pairwise.

    Subclasses say what one reply contributes, how two contributions combine, and what the server is given in the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total: Record | None = None

    @abstractmethod
    def contribution(self, reply: Reply) -> Record:
        """What one reply adds; a record of tensors that nobody else holds."""

    @abstractmethod
    def combine(self, total: Record, more: Record) -> Record:
        """Two contributions together; may write into `total`."""

    def finish(self, total: Record) -> Record:
        """What the server is given; may write into `total`."""
        return total

    def add(self, client: int, reply: Reply) -> None:
        self._count([client], float(reply.weight))
        self._plus(self.contribution(reply))

    def _plus(self, more: Record) -> None:
        self.total = more if self.total is None else self.combine(self.total, more)

    def merge(self, part: Self) -> None:
        self._count(part.clients, part.weight)
        if part.total is not None:
            self._plus(part.total)

    def result(self) -> Replies | None:
        if not self.clients or self.weight <= 0.0:
            return None
        assert self.total is not None
        total, self.total = self.total, None
        return Replies(sorted(self.clients), self.weight, self.finish(total))

    def held(self) -> Record:
        return Record(
            clients=torch.tensor(self.clients, dtype=torch.int64),
            weight=self.weight,
            totals=Record() if self.total is None else Record(total=self.total),
        )

    def take(self, held: Record) -> None:
        self._count(held.clients.tolist(), held.weight)
        if held.totals:
            self._plus(held.totals.total)


class Mean(Total):
    """Each field of the replies by its rule; the mean by weight where none is declared.

    Sums are at least float32; what comes out has the type that came in. A mean of integers is refused: counters must
    be declared.

    Args:
        rules: field -> rule, for the fields that are not averaged.
    """

    def __init__(self, rules: Mapping[str, Rule] | None = None) -> None:
        super().__init__()
        self.rules = rules or {}
        self.narrow = Record()
        """An empty tensor of the type of each leaf, where some are summed in a wider one."""

    def rule(self, name: str) -> Rule:
        return self.rules.get(name, "mean")

    def contribution(self, reply: Reply) -> Record:
        weight = float(reply.weight)
        self.narrow = _narrow(reply.values)
        return Record(
            {
                name: map_leaves(lambda v: _wide(v) * weight, self._floats(name, value))
                if self.rule(name) == "mean"
                else map_leaves(lambda v: _wide(v).clone(), value)
                for name, value in reply.values.items()
            }
        )

    def add(self, client: int, reply: Reply) -> None:
        if self.total is None:
            super().add(client, reply)
            return
        weight = float(reply.weight)  # multiplied in while adding: no copy of the reply
        self._count([client], weight)
        self.total = self._joined(self.total, reply.values, weight)

    def combine(self, total: Record, more: Record) -> Record:
        return self._joined(total, more, 1.0)

    def _joined(self, total: Record, more: Record, weight: float) -> Record:
        found = {}
        for name, held in total.items():
            rule = self.rule(name)
            if rule == "max":
                found[name] = map_leaves(torch.maximum, held, more[name])
            elif rule == "sum":
                found[name] = map_leaves(lambda t, v: t.add_(_wide(v)), held, more[name])
            else:
                found[name] = map_leaves(lambda t, v: t.add_(_wide(v), alpha=weight), held, more[name])
        return Record(found)

    def add_stacked(self, clients: Sequence[int], replies: Reply) -> None:
        weights = replies.weight
        self.narrow = _narrow(replies.values)
        found = {}
        for name, value in replies.values.items():
            rule = self.rule(name)
            if rule == "max":
                found[name] = map_leaves(lambda v: v.amax(0), value)
            elif rule == "sum":
                found[name] = map_leaves(lambda v: _wide(v).sum(0), value)
            else:
                found[name] = map_leaves(lambda v: _weighed(weights, _wide(v)), self._floats(name, value))
        self._count(clients, float(sum(weights.tolist())))
        self._plus(Record(found))

    def merge(self, part: Self) -> None:
        self.narrow = self.narrow or part.narrow
        super().merge(part)

    def merge_one(self, empty: Callable[[], Self], client: int, reply: Reply) -> None:
        """The same, one tensor after the other: the part is never there as a whole."""
        if self.total is None or type(self) is not Mean:
            super().merge_one(empty, client, reply)
            return
        weight = float(reply.weight)
        self.narrow = self.narrow or _narrow(reply.values)
        self._count([client], weight)
        found = {}
        for name, held in self.total.items():
            rule, value = self.rule(name), reply.values[name]
            if rule == "max":
                found[name] = map_leaves(lambda t, v: torch.maximum(t, _wide(v)), held, value)
            elif rule == "sum":
                found[name] = map_leaves(lambda t, v: t.add_(_wide(v)), held, value)
            else:  # rounded before it is added, as in a part
                found[name] = map_leaves(
                    lambda t, v: _plus_part(t, v, weight), held, self._floats(name, value)
                )
        self.total = Record(found)

    def held(self) -> Record:
        held = super().held()
        return held.replace(narrow=self.narrow) if self.narrow else held

    def take(self, held: Record) -> None:
        self.narrow = self.narrow or held.get("narrow", Record())
        super().take(held)

    def finish(self, total: Record) -> Record:
        found = Record(
            {
                name: map_leaves(lambda t: t.div_(self.weight), value) if self.rule(name) == "mean" else value
                for name, value in total.items()
            }
        )
        return map_leaves(lambda t, kind: t.to(kind.dtype), found, self.narrow) if self.narrow else found

    @staticmethod
    def _floats(name: str, value: object) -> object:
        if not all(leaf.is_floating_point() for leaf in leaves(value)):
            whole = [path for path, leaf in named_tensors(value, name) if not leaf.is_floating_point()]
            raise RunError(
                f"replies cannot be averaged: {', '.join(whole[:3])} holds whole numbers",
                hint=f'declare what becomes of the field, such as rules = {{"{name}": "max"}} in the method',
            )
        return value


class Each(Reducer):
    """Keeps every reply."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: list[Reply] = []

    def add(self, client: int, reply: Reply) -> None:
        self._count([client], float(reply.weight))
        self.replies.append(reply)

    def merge(self, part: Self) -> None:
        self._count(part.clients, part.weight)
        self.replies += part.replies

    def result(self) -> Replies | None:
        if not self.clients or self.weight <= 0.0:
            return None
        order = sorted(range(len(self.clients)), key=self.clients.__getitem__)
        return Replies(
            [self.clients[at] for at in order], self.weight, each=[self.replies[at] for at in order]
        )

    def held(self) -> Record:
        pairs = zip(self.clients, self.replies, strict=True)
        return Record({str(client): reply.to_record() for client, reply in pairs})

    def take(self, held: Record) -> None:
        for client, reply in held.items():
            self.add(int(client), Reply.of_record(reply))


def chunks(count: int, most: int = 64) -> Iterator[range]:
    """Cut `count` replies into at most `most` runs, which are summed apart and then merged in order.

    The cut depends on nothing else, and so does the order of sums: one worker, twenty, or clients on a network that
    answer in any order give the same bits.
    """
    length = max(1, -(-count // most))
    for start in range(0, count, length):
        yield range(start, min(start + length, count))


_HALVES = (torch.float16, torch.bfloat16)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALVES else tensor


_PIECE = 1 << 17
"""Numbers that are weighed before they are added: they stay in the processor's cache, and are little to hold."""


def _plus_part(total: Tensor, value: Tensor, weight: float) -> Tensor:
    """`total` with what a part adds that holds this one value, to the bit, piece by piece where that is possible."""
    if value.numel() <= _PIECE or not (total.is_contiguous() and value.is_contiguous()):
        return total.add_(_wide(value) * weight)
    room = torch.empty(_PIECE, dtype=_wide(value[:0]).dtype, device=value.device)
    for held, piece in zip(
        torch.split(total.view(-1), _PIECE), torch.split(value.view(-1), _PIECE), strict=True
    ):
        held.add_(torch.mul(_wide(piece), weight, out=room[: piece.numel()]))
    return total


def _narrow(values: Record) -> Record:
    """An empty tensor of the type of each leaf; nothing where all types are wide."""
    if all(leaf.dtype not in _HALVES for leaf in leaves(values)):
        return Record()
    return map_leaves(lambda v: v.new_empty(0), values)  # type: ignore[no-any-return]


def _weighed(weights: Tensor, values: Tensor) -> Tensor:
    """Sum of values [K, ...] by weight [K]."""
    if values.ndim == 1:
        return weights.to(values.dtype) @ values
    return (weights.to(values.dtype) @ values.flatten(1)).reshape(values.shape[1:])
