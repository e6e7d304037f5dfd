"""The contract between a federated method, the engines that run its client half, and the round loop.

A `Method` is both halves of a federated algorithm. Its server half (`setup`, `broadcast`, `update`) sees replies,
never data. Its client half is a `Program`: three pure functions for ONE client, `begin`, `step`, `finish`, which an
engine calls in a loop, batched over clients, in a worker process or on another machine. Whatever passes between the
halves is a `Record` of tensors and numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, leaves, map_leaves

__all__ = [
    "ClientData",
    "Evaluate",
    "Method",
    "Plan",
    "Population",
    "Program",
    "Reduction",
    "Replies",
    "Reply",
    "Work",
]

Model = tuple[Tensors, Tensors]


class Population(NamedTuple):
    """What the server knows before it has met a client.

    `clients` is how many there are. `tasks` are their architectures: client k has number k modulo their number.
    `example` is one input [1, ...], `public` are inputs [n, ...] that everybody knows, without labels, or None.
    """

    clients: int
    tasks: tuple[Task, ...] = ()
    example: Tensor | None = None
    public: Tensor | None = None


class Plan(NamedTuple):
    """How a client reads its training data: `epochs` passes, or `steps` batches if given; `batch_size` None = all."""

    epochs: int = 0
    steps: int | None = None
    batch_size: int | None = None


class ClientData(NamedTuple):
    """A client's data, all of it, for `begin` and `finish`. Splits that the program does not name in `reads` are None.

    `count` is the number of training samples, a scalar; a split is a `Batch`, padded where `mask` is 0. `public` is
    what everybody knows; its targets mean nothing.
    """

    count: Tensor  # type: ignore[assignment]  # a tuple's own `count` is of no use here
    train: Batch | None = None
    validation: Batch | None = None
    test: Batch | None = None
    public: Batch | None = None


class Reply(NamedTuple):
    """What a client sends: named values, the weight they carry in a mean, and sums to be pooled into metrics."""

    values: Record
    weight: Tensor
    metrics: Record


class Program(ABC):
    """The client half: pure functions for one client. Tensors in, tensors out; no branch on a tensor's value."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Splits that `begin` and `finish` look at as a whole ("train", "validation", "test", "public")."""
        return ()

    def plan(self) -> Plan:
        """How `step` is fed. The default is no step at all."""
        return Plan()

    def remember(self, task: Task, received: Record) -> Record:
        """What a client remembers before its first round (a record of tensors; empty: the method has no memory)."""
        return Record()

    @abstractmethod
    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        """The client's working state at the start of its round."""

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        """The working state after one batch."""
        raise NotImplementedError(f"{type(self).__name__} plans steps but defines none")

    @abstractmethod
    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        """The reply, and what the client remembers for its next round."""


@dataclass(frozen=True)
class Work:
    """What the server sends out for a round.

    `shared` goes to every client of the cohort, `own[client]` only to that one; the client receives both in one
    record. `program` names the client program to run.
    """

    shared: Record
    own: Mapping[int, Record] = field(default_factory=dict)
    program: str = "train"
    reduction: Literal["mean", "each"] | None = None
    """What the server needs of the replies; None means what the method says."""

    forms: Mapping[int, Record] = field(default_factory=dict)
    """The form that replies of these clients must have, where it is not what the method expects of all."""

    def received(self, client: int) -> Record:
        return self.shared.replace(**self.own[client]) if client in self.own else self.shared

    def nbytes(self, client: int) -> int:
        """Bytes that this client downloads."""
        return sum(
            leaf.numel() * leaf.element_size() for leaf in leaves(self.received(client)) if _is_tensor(leaf)
        )


class Method(Program):
    """Both halves of a federated method. Concrete methods are frozen dataclasses; their fields are hyper-parameters."""

    reduction: ClassVar[Literal["mean", "each"]] = "mean"
    """What `update` needs: the weighted mean of the replies (streamed), or each reply."""

    paper: ClassVar[str] = ""
    """Where the method comes from, for `atoll methods`."""

    cost: ClassVar[str] = "1 model up, 1 down"
    """What it costs a client beyond local training, for `atoll methods`."""

    relation: ClassVar[str] = ""
    """What `affinity` measures, in a few words."""

    mixed: ClassVar[bool] = False
    """Whether clients may have models of different architectures (`Population.tasks`)."""

    # ---- server half -----------------------------------------------------------------------------------------

    @abstractmethod
    def setup(self, task: Task, population: Population) -> Record:
        """The server's state before the first round; it has the global model in `params` and `buffers`."""

    @abstractmethod
    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        """What the clients of the cohort are sent."""

    @abstractmethod
    def update(self, state: Record, replies: Replies) -> Record:
        """The server's state after a round. Called only with at least one accepted reply of positive total weight."""

    def refine(self, state: Record, population: Population) -> Record:
        """What the server learns by itself after `update`, such as from public data. By default nothing."""
        return state

    def adapt(self, state: Record, replies: Replies) -> Record:
        """What the server makes of `replies.each` of newcomers; nobody else's model may change. By default nothing.

        This is how clients that never trained are judged: `enrol` and `welcome`, a few rounds with `adapt` in the
        place of `update`, and the program "personal".
        """
        return state

    def leave(self, state: Record, clients: Sequence[int]) -> Record:
        """The server's state without what it keeps of these clients, who are gone; nobody else's model changes."""
        return state

    def model(self, state: Record) -> Model:
        """The global model, (params, buffers); of the first architecture where there are several."""
        return state.params, state.buffers

    def enrol(self, state: Record, cohort: Sequence[int]) -> tuple[Sequence[int], Work] | None:
        """Which clients of the cohort are new and what they are asked first, or None: nobody is asked anything.

        A method that must know something of a client before its first round (a sketch of its data, its class
        counts) names the program that answers, and takes every answer in `welcome`.
        """
        return None

    def affinity(self, state: Record) -> tuple[list[int], Tensor] | None:
        """How related clients are, as far as the method knows: (some clients, matrix [n, n]). See `relation`."""
        return None

    def welcome(self, state: Record, replies: Replies) -> Record:
        """The server's state with what new clients have answered; `replies.each` in the order of `replies.clients`."""
        raise NotImplementedError(f"{type(self).__name__} enrols clients but does not welcome them")

    def expects(self, state: Record) -> Record:
        """Names and shapes a reply must have; replies of another form are refused."""
        return Record()

    # ---- client half -----------------------------------------------------------------------------------------

    @property
    def personalised(self) -> bool:
        """Whether clients predict with a model of their own."""
        return type(self).personal is not Method.personal or "personal" in self.programs()

    def programs(self) -> Mapping[str, Program]:
        """Client programs besides "train", which is the method itself."""
        return {}

    def program(self, name: str) -> Program:
        """The client program of that name. "evaluate" and "personal" have defaults."""
        own = self.programs()
        if name in own:
            return own[name]
        if name == "train":
            return self
        if name in ("evaluate", "personal"):
            return Evaluate(self if name == "personal" else None)
        raise KeyError(f"{type(self).__name__} has no client program {name!r}")

    def personal(self, received: Record, memory: Record) -> Model:
        """The model this client predicts with: the global one unless the method says otherwise."""
        return received.params, received.buffers


@dataclass(frozen=True)
class Evaluate(Program):
    """Judges a model on the client's test data: the personal one of `method`, or the global one without a method."""

    method: Method | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        return ("test",)

    def remember(self, task: Task, received: Record) -> Record:
        return self.method.remember(task, received) if self.method else Record()

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        params, buffers = (
            self.method.personal(received, memory) if self.method else (received.params, received.buffers)
        )
        return Record(params=params, buffers=buffers, memory=memory)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        assert data.test is not None
        totals = task.totals(local.params, local.buffers, data.test)
        return Reply(Record(), totals.count, totals), local.memory


# --- reduction ------------------------------------------------------------------------------------------------------


@dataclass
class Replies:
    """The accepted replies of a round as a method asked for them: their weighted `mean`, or `each` of them.

    `clients` are sorted; `count` is how many there are; `weight` is their total weight.
    """

    clients: list[int]
    weight: float
    mean: Record
    each: list[Reply]

    @property
    def count(self) -> int:
        return len(self.clients)


class Reduction:
    """Takes replies as they come and makes `Replies`, in constant memory where the method needs only the mean.

    Sums are at least float32. Floating-point tensors are averaged by weight; integer tensors (step counters) keep
    their maximum and never pass through floating point. Add in client order for a result that does not depend on
    the order of arrival.
    """

    def __init__(self, kind: Literal["mean", "each"]) -> None:
        self.kind = kind
        self.clients: list[int] = []
        self.weight = 0.0
        self.total: Record | None = None
        self.each: list[Reply] = []

    def add(self, client: int, reply: Reply) -> None:
        """Add one reply, already screened."""
        weight = float(reply.weight)
        self.clients.append(client)
        self.weight += weight
        if self.kind == "each":
            self.each.append(reply)
        elif self.total is None:
            self.total = _map(lambda v: v * weight if _averaged(v) else v.clone(), reply.values)
        else:
            self.total = _map2(lambda t, v: _accumulate(t, v, weight), self.total, reply.values)

    def merge(self, part: Reduction) -> None:
        """Add the replies that another reduction has taken, a worker's or a batch's."""
        self.clients += part.clients
        self.weight += part.weight
        self.each += part.each
        if part.total is not None:
            add = (
                _map2(lambda t, v: _accumulate(t, v, 1.0), self.total, part.total)
                if self.total
                else part.total
            )
            self.total = add

    def result(self) -> Replies | None:
        """The reduced replies, or None where nothing was accepted or all weights are zero."""
        if not self.clients or self.weight <= 0.0:
            return None
        weight = self.weight
        mean = Record()
        if self.total is not None:
            mean = _map(lambda t: t / weight if _averaged(t) else t, self.total)
        order = sorted(range(len(self.clients)), key=self.clients.__getitem__)
        each = [self.each[i] for i in order] if self.each else []
        return Replies([self.clients[i] for i in order], weight, mean, each)


def screen(reply: Reply, expected: Record) -> str | None:
    """Why a reply must be refused, or None. Checks form against `expected`, and that every number is finite."""
    reason = misshapen(reply.values, expected)
    if reason is not None:
        return reason
    weight = reply.weight
    if not bool(torch.isfinite(weight)) or float(weight) < 0:
        return f"its weight is {float(weight)}"
    for name, value in _named(reply.values):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            return f"{name} has {bad} non-finite numbers of {value.numel()}"
    return None


def misshapen(values: Record, expected: Record) -> str | None:
    """How the form of a reply's values differs from `expected`, or None."""
    for name, wanted in expected.items():
        got = values.get(name)
        if got is None:
            return f"it has no {name!r}"
        reason = _misfit(name, got, wanted)
        if reason:
            return reason
    return None


def _misfit(name: str, got: object, wanted: object) -> str | None:
    if isinstance(wanted, Tensors):
        if not isinstance(got, Tensors) or got.keys() != wanted.keys():
            differ = sorted(set(got if isinstance(got, dict) else ()) ^ set(wanted))
            return f"{name} has other tensors: {', '.join(differ) or type(got).__name__}"
        for key, value in wanted.items():
            if got[key].shape != value.shape:
                return f"{name}.{key} has shape {tuple(got[key].shape)}, not {tuple(value.shape)}"
    elif _is_tensor(wanted) and (not isinstance(got, Tensor) or got.shape != wanted.shape):  # type: ignore[attr-defined]
        return f"{name} is not a tensor of shape {tuple(wanted.shape)}"  # type: ignore[attr-defined]
    return None


def _named(values: Record, prefix: str = "") -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _named(value, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif isinstance(value, Tensor):
            found.append((f"{prefix}{name}", value))
    return found


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, Tensor)


def _averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _accumulate(total: Tensor, value: Tensor, weight: float) -> Tensor:
    if not _averaged(value):
        return torch.maximum(total, value)
    return total.add_(_wide(value), alpha=weight)


def _map(function: Callable[[Tensor], Tensor], tree: Record) -> Record:
    return map_leaves(lambda v: function(_wide(v)), tree)  # type: ignore[no-any-return]


def _map2(function: Callable[[Tensor, Tensor], Tensor], tree: Record, other: Record) -> Record:
    return map_leaves(function, tree, other)  # type: ignore[no-any-return]
