"""Worker processes, one a core: each runs captured steps for one client after another with one thread.

Workers are forked, so they inherit task, method and data without copying or serialising any of them. What passes
between processes is records of tensors in shared memory and a small header; partial sums are made in the worker.
Cohorts are cut into runs of clients that do not depend on the number of workers, and the runs are summed in order:
the result is the same to the bit with one worker and with twenty.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, ClassVar, Literal

import msgspec
import torch

from atoll.codec import Header
from atoll.data import FederatedData
from atoll.engines.arena import Arena
from atoll.engines.base import Engine, Job, Memories, Outcome, chunks, cores, settle
from atoll.engines.steps import Sequential
from atoll.errors import AtollError, EngineError, RunError
from atoll.method import Method, Reduction, Replies, Reply, Work
from atoll.task import Task
from atoll.tensors import Record, map_leaves

__all__ = ["Processes"]

_SLOTS = 2  # runs of clients a worker holds at a time: one in work, one waiting


class _Order(msgspec.Struct):
    """Parent to worker: the round's setting, or one run of clients."""

    round: int = 0
    seed: int = 0
    program: str = ""
    reduction: Literal["mean", "each"] = "mean"
    shared: Header = []
    expected: Header | None = None
    epochs: dict[int, int] = {}
    cohort: int = 1
    slot: int = -1
    clients: list[int] = []
    personal: Header = []


class _Done(msgspec.Struct):
    """Worker to parent: what a run of clients came to."""

    slot: int = 0
    clients: list[int] = []
    weight: float = 0.0
    result: Header = []
    outcomes: list[tuple[int, float, dict[str, float], int, str | None, float, float]] = []
    error: str = ""
    client: int = -1
    hint: str | None = None
    engine: bool = False


_encode = msgspec.msgpack.encode


class Processes(Engine):
    """Runs clients in worker processes (CPU only).

    Args:
        workers: how many; by default one a core.
    """

    name: ClassVar[str] = "processes"

    def __init__(
        self, task: Task, data: FederatedData, device: torch.device, workers: int | None = None
    ) -> None:
        super().__init__(task, data, device)
        if device.type != "cpu":
            raise EngineError("worker processes train on the CPU", hint='use engine="batched" on a GPU')
        if not hasattr(os, "fork") or sys.platform == "darwin":
            raise EngineError("this system cannot fork safely", hint='use engine="batched" or "loop"')
        self.workers = workers or cores()
        self.method: Method | None = None
        self.crew: list[_Worker] = []
        self.shared = Arena()

    def describe(self) -> str:
        return f"{self.name}, {self.workers} worker{'s' if self.workers > 1 else ''}"

    def settled(self) -> tuple[str, int | None]:
        return self.name, self.workers

    def run(self, job: Job, memories: Memories) -> tuple[Replies | None, list[Outcome]]:
        self._hire(job.method)
        order = _Order(
            job.round, job.seed, job.work.program, job.reduction, epochs=dict(job.epochs), cohort=job.cohort
        )
        order.shared = self.shared.write(Record(shared=job.work.shared, expected=job.expected))
        runs = [[job.clients[at] for at in run] for run in chunks(len(job.clients))]
        todo = deque(enumerate(runs))
        busy: dict[tuple[int, int], int] = {}
        arrived: dict[int, Reduction] = {}
        reduction = Reduction(job.reduction)
        outcomes: list[list[Outcome]] = [[] for _ in runs]
        merged = 0

        def give(number: int, slot: int) -> None:
            if todo:
                at, clients = todo.popleft()
                busy[number, slot] = at
                with self._lost(number):
                    self.crew[number].give(slot, clients, job, memories)

        for number, worker in enumerate(self.crew):
            with self._lost(number):
                worker.line.send_bytes(_encode(order))

        for slot in range(_SLOTS):
            for number in range(len(self.crew)):
                give(number, slot)
        lines = {worker.line: number for number, worker in enumerate(self.crew)}
        while busy:
            for line in wait(list(lines)):
                number = lines[line]  # type: ignore[index]
                done = self._receive(number)
                at = busy.pop((number, done.slot))
                arrived[at], outcomes[at] = self.crew[number].take(done, job, memories)
                give(number, done.slot)
            while merged in arrived:
                reduction.merge(arrived.pop(merged))
                merged += 1
        return reduction.result(), [outcome for run in outcomes for outcome in run]

    def _receive(self, number: int) -> _Done:
        with self._lost(number):
            done = msgspec.msgpack.decode(self.crew[number].line.recv_bytes(), type=_Done)
        if done.error:
            self.close()
            kind = EngineError if done.engine else RunError
            raise kind(f"client {self.data.names[done.client]}: {done.error}", hint=done.hint)
        return done

    @contextlib.contextmanager
    def _lost(self, number: int) -> Iterator[None]:
        """Say so if worker `number` is gone."""
        try:
            yield
        except (EOFError, ConnectionError):
            self.close()
            raise RunError(
                f"worker process {number} ended unexpectedly",
                hint="it may have run out of memory; try fewer workers",
            ) from None

    def _hire(self, method: Method) -> None:
        if self.crew and self.method is method:
            return
        self.close()
        importlib.import_module(
            "torch._dynamo"
        )  # once here, or every worker pays for it; never while forking
        self.method = method
        for _ in range(self.workers):
            self.crew.append(_Worker(self, method, [worker.line for worker in self.crew]))

    def close(self) -> None:
        crew, self.crew = self.crew, []
        for worker in crew:
            worker.line.close()
        for worker in crew:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


class _Worker:
    """The parent's side of one worker: a line to it and the memory of its slots."""

    def __init__(self, engine: Processes, method: Method, others: list[Connection[Any, Any]]) -> None:
        self.slots = [Arena() for _ in range(_SLOTS)]
        self.line, theirs = multiprocessing.Pipe()
        inherited = [*others, self.line]
        self.process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(engine, method, theirs, inherited, self.slots), daemon=True
        )
        self.process.start()
        theirs.close()

    def give(self, slot: int, clients: list[int], job: Job, memories: Memories) -> None:
        """Hand a run of clients to the worker, with what is only theirs."""
        personal = Record()
        for client in clients:
            memory = memories.get(client)
            own = job.work.own.get(client)
            if memory is not None:
                personal = personal.replace(**{f"memory{client}": memory})
            if own is not None:
                personal = personal.replace(**{f"own{client}": own})
            if client in job.work.forms:
                personal = personal.replace(**{f"form{client}": job.work.forms[client]})
        order = _Order(slot=slot, clients=clients, personal=self.slots[slot].write(personal))
        self.line.send_bytes(_encode(order))

    def take(self, done: _Done, job: Job, memories: Memories) -> tuple[Reduction, list[Outcome]]:
        """Read a result out of the slot, and keep the clients' memories."""
        result = self.slots[done.slot].read(done.result)
        part = Reduction(job.reduction)
        part.clients, part.weight = done.clients, done.weight
        if "total" in result:
            part.total = _own(result.total)
        for at, client in enumerate(done.clients):
            if f"reply{client}" in result:
                values = _own(result[f"reply{client}"])
                weight, metrics = next((o[1], o[2]) for o in done.outcomes if o[0] == client)
                sums = Record({name: torch.tensor(value) for name, value in metrics.items()})
                part.each.insert(at, Reply(values, torch.tensor(weight), sums))
            if f"memory{client}" in result:
                memories.put(client, _own(result[f"memory{client}"]))
        probes = {o[0]: result.get(f"probe{o[0]}") for o in done.outcomes}
        return part, [
            Outcome(*fields, probe=None if probe is None else probe.clone())
            for fields, probe in zip(done.outcomes, probes.values(), strict=True)
        ]


def _own(record: Record) -> Record:
    return map_leaves(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, record)  # type: ignore[no-any-return]


class _Notebook:
    """The memories of one run of clients, as the worker sees them."""

    def __init__(self) -> None:
        self.before: dict[int, Record] = {}
        self.after: dict[int, Record] = {}

    def get(self, client: int) -> Record | None:
        return self.before.get(client)

    def put(self, client: int, memory: Record) -> None:
        self.after[client] = memory


def _serve(
    engine: Processes,
    method: Method,
    line: Connection[Any, Any],
    inherited: list[Connection[Any, Any]],
    slots: list[Arena],
) -> None:
    """A worker's life: orders in, results out, until the line closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    for other in inherited:
        other.close()
    torch.set_num_threads(1)
    runner = Sequential(engine.task, engine.data, torch.device("cpu"))
    setting = _Order()
    shared = expected = Record()
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        while True:
            order = msgspec.msgpack.decode(line.recv_bytes(), type=_Order)
            if order.slot < 0:
                setting = order
                both = engine.shared.read(order.shared)
                shared, expected = both.shared, both.expected
                continue
            personal = _own(slots[order.slot].read(order.personal))
            own, forms = (
                {
                    client: personal[f"{kind}{client}"]
                    for client in order.clients
                    if f"{kind}{client}" in personal
                }
                for kind in ("own", "form")
            )
            work = Work(shared, own, setting.program, setting.reduction, forms)
            job = Job(
                method, work, order.clients, setting.round, setting.seed, expected, setting.epochs,
                cohort=setting.cohort,
            )  # fmt: skip
            line.send_bytes(_encode(_perform(runner, job, order, personal, slots[order.slot])))
    os._exit(0)


def _perform(runner: Sequential, job: Job, order: _Order, personal: Record, slot: Arena) -> _Done:
    part = Reduction(job.reduction)
    notebook = _Notebook()
    notebook.before = {c: personal[f"memory{c}"] for c in order.clients if f"memory{c}" in personal}
    outcomes = []
    client = -1
    try:
        for client in order.clients:
            begun = time.perf_counter()
            reply, memory = runner.client(job, client, notebook.get(client))
            outcomes.append(settle(client, reply, memory, job, part, notebook, begun))
    except Exception as error:
        own = isinstance(error, AtollError)
        message = error.message if isinstance(error, AtollError) else f"{type(error).__name__}: {error}"
        hint = error.hint if isinstance(error, AtollError) else None
        return _Done(
            order.slot, error=message, client=client, hint=hint, engine=own and isinstance(error, EngineError)
        )
    result = Record() if part.total is None else Record(total=part.total)
    replies = {f"reply{c}": reply.values for c, reply in zip(part.clients, part.each, strict=False)}
    memories = {f"memory{c}": memory for c, memory in notebook.after.items()}
    probes = {f"probe{o.client}": o.probe for o in outcomes if o.probe is not None}
    header = slot.write(result.replace(**replies, **memories, **probes))
    plain = [(o.client, o.weight, dict(o.metrics), o.nbytes, o.refused, o.begun, o.ended) for o in outcomes]
    return _Done(order.slot, part.clients, part.weight, header, plain)
