"""One client's half of a round: an order in, an answer out. A simulation's loop runs this, and so does a client."""

from __future__ import annotations

from collections.abc import Callable

import torch

from atoll.contract import Answer, ClientData, Order, Program
from atoll.data import FederatedData
from atoll.draws import untouched
from atoll.engines import stages
from atoll.engines.probe import probe
from atoll.engines.reading import client_data, gather, of_stage, step_keys, the_order, whole_key
from atoll.errors import AtollError, RunError
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, to_device

__all__ = ["Client", "failed", "located"]


class Client:
    """Runs programs on clients' data, one client after another, one step after another, as they are written."""

    def __init__(self, task: Task, data: FederatedData, device: torch.device) -> None:
        self.task = task
        self.data = data
        self.device = device
        self._last: tuple[Program, int] | None = None

    def answer(
        self,
        order: Order,
        program: Program,
        memory: Record | None,
        changed: Callable[[Record, Record, Record], Tensors | None] | None = None,
        cohort: int = 1,
    ) -> tuple[Answer, Record]:
        """The answer to an order, and what the client remembers.

        `memory` is what is stored of it, None before its first round. With `changed` (see `Job.changed`) the answer has
        a probe, for a cohort of so many. Raises RunError (or what AtollError the program raised) that names client,
        round and stage, EngineError where a client's work draws from a global random state.
        """
        first, self._last = self._last != (program, order.round), (program, order.round)
        with torch.no_grad():
            return untouched(
                lambda: self._answer(order, program, memory, changed, cohort),
                lambda: _whose(self.data, order),
                whole=first,  # it takes a while for small clients; the others run the same program
            )

    def _answer(
        self,
        order: Order,
        program: Program,
        memory: Record | None,
        changed: Callable[[Record, Record, Record], Tensors | None] | None,
        cohort: int,
    ) -> tuple[Answer, Record]:
        received, memory, data = self.given(order, program, memory)
        local = self._trained(order, program, received, memory, data)
        with located(self.data, order, "finish"):
            data = of_stage(data, whole_key(order, "finish", self.device))
            reply, after = stages.finish(program, self.task, local, data)
        moved = None if changed is None else changed(reply.values, received, memory)
        return Answer(order.client, reply, None if moved is None else probe(moved, cohort)), after

    @torch.no_grad()
    def working(self, order: Order, program: Program, memory: Record | None) -> Record:
        """The client's working state after all its steps, where an answer is not wanted."""
        received, memory, data = self.given(order, program, memory)
        return self._trained(order, program, received, memory, data)

    def given(
        self, order: Order, program: Program, memory: Record | None
    ) -> tuple[Record, Record, ClientData]:
        """What a client begins with: what it received, what it remembers, its data."""
        received = to_device(order.received, self.device)
        with located(self.data, order, "remember"):
            stored = None if memory is None else to_device(memory, self.device)
            held = stages.recall(program, self.task, received, stored)
        return received, held, client_data(self.data, order, program, self.device)

    def _trained(
        self, order: Order, program: Program, received: Record, memory: Record, data: ClientData
    ) -> Record:
        with located(self.data, order, "begin"):
            local = stages.begin(program, self.task, received, memory, data)
        with located(self.data, order, "step"):
            return self.train(order, program, local)

    def train(self, order: Order, program: Program, local: Record) -> Record:
        """All steps of one client's round."""
        client = order.client
        read = the_order(order, program.plan(), self.task, self.data)
        if not len(read.index):
            return local
        keys = step_keys(order, [client], len(read.index))[0]
        train = self.data.samples(client)
        assert train is not None
        train, keys = to_device((train, keys), self.device)  # once, and not batch by batch
        rows = torch.from_numpy(read.index[read.mask > 0]).to(self.device)
        for at, key in zip(torch.split(rows, (read.mask > 0).sum(1).tolist()), keys, strict=True):
            inputs, targets = gather(train, at)
            batch = Batch(inputs, targets, torch.ones(len(at), device=self.device), key)
            local = stages.step(program, self.task, local, batch)
        return local


class located:
    """Inside, what goes wrong in a client's work says so: which client, round and stage.

    Errors of Atoll keep their kind and hint; others become RunError, with what was raised as their cause.
    """

    def __init__(self, data: FederatedData, order: Order, stage: str) -> None:
        self.data, self.order, self.stage = data, order, stage

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception):
            raise failed(f"{_whose(self.data, self.order)}, {self.stage}", error) from error


def _whose(data: FederatedData, order: Order) -> str:
    """Whose work an order asks for, for errors."""
    return f"round {order.round}, client {data.names[order.client]!s}"


def failed(where: str, error: Exception) -> AtollError:
    """An error in clients' work, with where it happened.

    Raises KeyboardInterrupt where that is what broke the work off, and the error only what it left behind: torch's
    modes, which are entered and left a hundred times in a step, can be interrupted half-way.
    """
    if isinstance(error, AtollError):
        found = type(error).__new__(type(error))
        AtollError.__init__(found, f"{where}: {error.message}", hint=error.hint)
        return found
    before: BaseException | None = error
    while before is not None:
        if isinstance(before, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        before = before.__context__
    lines = str(error).strip().splitlines() or [""]
    return RunError(f"{where}: {type(error).__name__}: {lines[0]}")
