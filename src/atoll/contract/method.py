"""A federated method: both its halves.

A `Method` is both halves of a federated algorithm. Its server half (`setup`, `broadcast`, `update`) sees replies,
never data. Its client half is a `Program`: three pure functions for ONE client, `begin`, `step`, `finish`, which an
engine calls in a loop, batched over clients, in a worker process or on another machine. Whatever passes between the
halves is a `Record` of tensors and numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll.contract.change import Change
from atoll.contract.messages import ClientData, Model, Plan, Population, Reply, Work
from atoll.contract.reduce import Each, Mean, Reducer, Replies, Rule
from atoll.task import Batch, Task
from atoll.tensors import Record, to_device

__all__ = ["Evaluate", "Method", "Program"]


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

    def recall(self, task: Task, received: Record, stored: Record | None) -> Record:
        """What `begin` is given as memory, from what is stored of the client; None before its first round."""
        return self.remember(task, received) if stored is None else stored

    @abstractmethod
    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        """The client's working state at the start of its round."""

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        """The working state after one batch."""
        raise NotImplementedError(f"{type(self).__name__} plans steps but defines none")

    @abstractmethod
    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        """The reply, and what the client remembers for its next round."""


class Method(Program):
    """Both halves of a federated method. Concrete methods are frozen dataclasses; their fields are hyper-parameters."""

    reduction: ClassVar[Literal["mean", "each"]] = "mean"
    """What `update` needs: the replies reduced field by field (streamed), or each reply."""

    rules: ClassVar[Mapping[str, Rule]] = {}
    """What becomes of the fields of a reply that are not averaged by weight: field -> "sum" or "max"."""

    change: ClassVar[Change | None] = None
    """Which field of a reply tells how the client's model changed; None: none does."""

    broadcasts: ClassVar[tuple[str, ...]] = ()
    """Which fields of what is shared with all clients (`Work.shared`) are models that may travel in fewer bytes."""

    paper: ClassVar[str] = ""
    """Where the method comes from, for `atoll methods`."""

    cost: ClassVar[str] = "1 model up, 1 down"
    """What it costs a client beyond local training, for `atoll methods`."""

    relation: ClassVar[str] = ""
    """What `affinity` measures, in a few words."""

    mixed: ClassVar[bool] = False
    """Whether clients may have models of different architectures (`Population.tasks`)."""

    in_step: ClassVar[bool] = False
    """Whether all replies that the server takes together must be to one broadcast, so that there must be rounds."""

    alternates: ClassVar[bool] = False
    """Whether replies have another form in one round than in the next, and nothing of one can be part of the other."""

    low_rank: ClassVar[bool] = False
    """Whether it is for models of which factors of low rank are trained (`atoll.adapters.pairs`)."""

    exact: ClassVar[bool | None] = None
    """Whether what it makes of factors of low rank is the mean of their products; None where it makes no such mean."""

    pairwise: ClassVar[bool] = False
    """Whether peers can learn in pairs, without rounds (`meet`)."""

    host: ClassVar[tuple[str, ...]] = ()
    """Fields of the state that stay in main memory whatever the device: what the server reads number by number."""

    # ---- server half -----------------------------------------------------------------------------------------

    def on_device(self, state: Record, device: torch.device) -> Record:
        """A state where a run on this device keeps it: there, but for the fields in `host`."""
        main = torch.device("cpu")
        return Record(
            {name: to_device(value, main if name in self.host else device) for name, value in state.items()}
        )

    @abstractmethod
    def setup(self, task: Task, population: Population) -> Record:
        """The server's state before the first round; it has the global model in `params` and `buffers`."""

    @abstractmethod
    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        """What the clients of the cohort are sent."""

    @abstractmethod
    def update(self, state: Record, replies: Replies) -> Record:
        """The server's state after a round. Called only with at least one accepted reply of positive total weight."""

    def meet(self, state: Record, replies: Replies, there: Sequence[int]) -> Record:
        """The state after one peer is done, whose reply this is, and has met another one of those that are `there`.

        For methods that are `pairwise`, in the place of `update`.
        """
        raise NotImplementedError(f"{type(self).__name__} has rounds")

    def caught_up(self, state: Record, client: int, reply: Reply, sent: Record) -> Reply:
        """The reply of a peer whose model has changed since it was `sent`: what it learned, on top of its model now."""
        raise NotImplementedError(f"{type(self).__name__} has rounds")

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

    def farewell(self, state: Record, memory: Record) -> Record:
        """The server's state after a client that is about to leave has shown what it remembered; `leave` follows.

        For methods whose state is a sum over clients' memories. A client without a memory shows none.
        """
        return state

    def model(self, state: Record) -> Model:
        """The global model, (params, buffers); of the first architecture where there are several."""
        return state.params, state.buffers

    def consensus(self, state: Record) -> float | None:
        """How far the models of peers are apart, the root of their mean squared distance to their mean; None: one
        model is the server's."""
        return None

    def carried(self, state: Record) -> int | None:
        """Bytes that clients sent each other in the round that led to this state; None: all goes through a server."""
        return None

    def traffic(self, state: Record, cohort: Sequence[int]) -> Mapping[int, tuple[int, int]]:
        """Bytes that each client of a cohort hears from others and sends to others in a round; empty: all goes through
        a server."""
        return {}

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

    def reducer(self, work: Work) -> Reducer:
        """What takes the replies to this work."""
        kind = work.reduction or self.reduction
        return Each() if kind == "each" else Mean(self.rules)

    @property
    def distils(self) -> bool:
        """Whether it learns from public inputs (`Population.public`), and cannot do without."""
        return any("public" in program.reads for program in (self, *self.programs().values()))

    # ---- client half -----------------------------------------------------------------------------------------

    @property
    def beside(self) -> str:
        """What clients predict by that is no model, such as samples of theirs; "" where their model is all."""
        return ""

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
