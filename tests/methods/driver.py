"""The readable reference: a federation played by calling the contract, with nothing between the halves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from atoll.contract import ClientData, Method, Plan, Population, Program, Replies, Reply, screen
from atoll.task import Batch, Task
from atoll.tensors import Record


class Client(NamedTuple):
    """Training data, and test data where a test needs them."""

    inputs: Tensor
    targets: Tensor
    test: tuple[Tensor, Tensor] | None = None


def whole(inputs: Tensor, targets: Tensor) -> Batch:
    """All samples as one batch."""
    return Batch(inputs, targets, torch.ones(len(inputs)), torch.zeros((), dtype=torch.int64))


def batches(plan: Plan, client: Client, epochs: int) -> Iterator[Batch]:
    """The client's batches, in the order of its samples."""
    count = len(client.inputs)
    size = plan.batch_size or count
    passes = epochs if plan.steps is None else plan.steps
    cuts = [slice(start, start + size) for start in range(0, count, size)] * passes
    for cut in cuts[: plan.steps]:
        yield whole(client.inputs[cut], client.targets[cut])


class Played:
    """A federation: a method, a task, clients given as tensors; the server's state, the clients' memories."""

    def __init__(self, method: Method, task: Task, clients: Sequence[Client], seed: int = 0) -> None:
        self.method, self.task, self.clients = method, task, clients
        self.state = method.setup(task, Population(len(clients), (task,), clients[0].inputs[:1], seed=seed))
        self.memories: dict[int, Record] = {}
        self.sent: dict[int, Reply] = {}

    @torch.no_grad()
    def client(
        self, k: int, program: Program, received: Record, epochs: int | None = None
    ) -> tuple[Reply, Record]:
        """One client's work."""
        own, plan = self.clients[k], program.plan()
        splits = {"train": whole(own.inputs, own.targets), "test": own.test and whole(*own.test)}
        data = ClientData(
            torch.tensor(float(len(own.inputs))), torch.tensor(0), **{n: splits[n] for n in program.reads}
        )
        memory = self.memories[k] if k in self.memories else program.remember(self.task, received)
        local = program.begin(self.task, received, memory, data)
        for batch in batches(plan, own, plan.epochs if epochs is None else epochs):
            local = program.step(self.task, local, batch)
        return program.finish(self.task, local, data)

    def round(self, cohort: Sequence[int] | None = None, epochs: Mapping[int, int] | None = None) -> Replies:
        """One round with these clients, some of which may do other numbers of epochs than planned."""
        chosen = range(len(self.clients)) if cohort is None else cohort
        work = self.method.broadcast(self.state, list(chosen))
        reduction = self.method.reducer(work)
        for k in chosen:
            passes = (epochs or {}).get(k, self.method.plan().epochs) + work.passes.get(k, 0)
            reply, memory = self.client(k, self.method, work.received(k), passes)
            assert screen(reply, self.method.expects(self.state)) is None
            self.sent[k] = reply
            if memory:
                self.memories[k] = memory
            reduction.add(k, reply)
        replies = reduction.result()
        assert replies is not None
        self.state = self.method.update(self.state, replies)
        return replies

    def rounds(self, count: int) -> Played:
        for _ in range(count):
            self.round()
        return self

    def personal(self, k: int) -> Record:
        """What the client's "personal" program measures, as means."""
        work, program = self.method.broadcast(self.state, [k]), self.method.program("personal")
        passes = program.plan().epochs + work.passes.get(k, 0)
        metrics = self.client(k, program, work.received(k), passes)[0].metrics
        return Record({name: float(value / metrics["count"]) for name, value in metrics.items()})

    @property
    def params(self) -> Tensor:
        """All parameters of the global model in one vector."""
        return self.method.model(self.state)[0].flat()


# --- analytic quadratics ------------------------------------------------------------------------------------


def quadratic(a: float, b: float, samples: int = 1) -> Client:
    """A client with F(w) = a/2 (w - b)^2, however many samples it has."""
    inputs = torch.full((samples, 1), math.sqrt(a / 2), dtype=torch.float64)
    return Client(inputs, inputs * b)


def line(w: float = 0.0) -> Task:
    """One parameter, squared error, double precision."""
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, w)
    return Task(module, "mse")


CURVES = ((1.0, -1.0), (2.0, 2.0), (5.0, 4.0))
"""Three clients that disagree: curvature and minimum of each."""

OPTIMUM = sum(a * b for a, b in CURVES) / sum(a for a, _ in CURVES)
"""Where the mean of their objectives is least."""


def disagreeing() -> list[Client]:
    return [quadratic(a, b) for a, b in CURVES]


# --- a small classification problem -------------------------------------------------------------------------


def blobs(*sizes: int, tested: int = 0) -> list[Client]:
    """Clients with these many samples of 6 features in 3 classes, each client's features shifted a little."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(3, 6, generator=generator)
    clients = []
    for k, size in enumerate(sizes):
        targets = torch.randint(3, (size + tested,), generator=generator)
        inputs = centres[targets] + 0.5 * torch.randn(size + tested, 6, generator=generator) + 0.3 * k
        test = (inputs[size:], targets[size:]) if tested else None
        clients.append(Client(inputs[:size], targets[:size], test))
    return clients


def network(normalised: bool = False) -> Task:
    """6 inputs, 3 classes, one hidden layer, with BatchNorm if asked."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        middle: list[nn.Module] = [nn.BatchNorm1d(8)] if normalised else []
        return Task(nn.Sequential(nn.Linear(6, 8), *middle, nn.Tanh(), nn.Linear(8, 3)))
