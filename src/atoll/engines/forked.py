"""Worker processes, one a core: each runs captured steps for one client after another with one thread.

Workers are forked, so they inherit task, method and data without copying or serialising any of them. What passes
between processes is records of tensors in shared memory and a small header; partial sums are made in the worker.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, ClassVar

import msgspec
import torch

from atoll.codec import Header
from atoll.contract import Channel, Job, Memories, Method, Outcome, Work, outcome
from atoll.data import FederatedData
from atoll.engines.arena import Arena
from atoll.engines.pool import AHEAD, Crew, Done, Pool
from atoll.engines.sequential import Sequential
from atoll.engines.steps import Steps
from atoll.errors import AtollError, EngineError, RunError
from atoll.machine import cores
from atoll.task import Task
from atoll.tensors import Record, map_leaves

__all__ = ["Processes"]


class _Setting(msgspec.Struct, tag=True):
    """Parent to worker: what holds for the whole round."""

    round: int
    seed: int
    program: str
    reduction: str | None
    shared: Header
    epochs: dict[int, int]
    cohort: int
    padded: bool
    weights: dict[int, float] | None = None
    limits: dict[int, int] = {}
    factors: dict[int, float] = {}


class _Run(msgspec.Struct, tag=True):
    """Parent to worker: a run of clients, and where what is only theirs lies."""

    run: int
    slot: int
    clients: list[int]
    own: Header


class _Result(msgspec.Struct):
    """Worker to parent: what a run of clients came to."""

    run: int
    slot: int
    result: Header = []
    outcomes: list[tuple[int, float, dict[str, Any], int, str | None, float, float]] = []
    error: str = ""
    hint: str | None = None
    engine: bool = False


_encode = msgspec.msgpack.encode
_orders = msgspec.msgpack.Decoder(_Setting | _Run)
_results = msgspec.msgpack.Decoder(_Result)


class Processes(Pool):
    """Runs clients in worker processes (CPU only).

    Args:
        workers: how many; by default one a core.
    """

    name: ClassVar[str] = "processes"

    def __init__(
        self, task: Task, data: FederatedData, device: torch.device, workers: int | None = None
    ) -> None:
        if device.type != "cpu":
            raise EngineError("worker processes train on the CPU", hint='use engine="batched" on a GPU')
        if not hasattr(os, "fork") or sys.platform == "darwin":
            raise EngineError("this system cannot fork safely", hint='use engine="batched" or "loop"')
        self.workers = workers or cores()
        self.steps = Steps(task)
        """Captured steps that workers are born with."""
        super().__init__(task, data, device, Forked(task, data, self.workers, self.steps))

    def describe(self) -> str:
        return f"{self.name}, {self.workers} worker{'s' if self.workers > 1 else ''}{self.unpadded}"

    def settled(self) -> tuple[str, int | None]:
        return self.name, self.workers

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


class Forked(Crew):
    """Forked processes; hired when the first round comes, and anew for another method."""

    def __init__(self, task: Task, data: FederatedData, size: int, steps: Steps) -> None:
        self.task, self.data, self.size, self.steps = task, data, size, steps
        self.workers: list[_Worker] = []
        self.shared = Arena()
        self._for: tuple[Method, Channel | None] | None = None

    def open(self, job: Job, padded: bool) -> None:
        self._hire(job)
        work = job.work
        shared = self.shared.write(Record(shared=work.shared, expected=job.expected))
        setting = _Setting(
            job.round,
            job.seed,
            work.program,
            work.reduction,
            shared,
            {k: passes for k in job.clients if (passes := job.passes(k)) is not None},
            job.cohort,
            padded,
            job.weights if job.weights is None else {k: float(job.weights[k]) for k in job.clients},
            dict(job.limits),
            dict(job.factors),
        )
        for number, worker in enumerate(self.workers):
            with self._lost(number):
                worker.line.send_bytes(_encode(setting))

    def give(self, worker: int, run: int, clients: Sequence[int], job: Job, memories: Memories) -> None:
        remembered = {client: memories.get(client) for client in clients}
        own = Record(
            memories=_by_client({k: memory for k, memory in remembered.items() if memory is not None}),
            own=_by_client({k: job.work.own[k] for k in clients if k in job.work.own}),
            forms=_by_client({k: job.work.forms[k] for k in clients if k in job.work.forms}),
        )
        with self._lost(worker):
            self.workers[worker].give(run, list(clients), own)

    def done(self, job: Job) -> Iterator[Done]:
        lines = {worker.line: number for number, worker in enumerate(self.workers)}
        for line in wait(list(lines)):
            number = lines[line]  # type: ignore[index]
            worker = self.workers[number]
            with self._lost(number):
                result = _results.decode(worker.line.recv_bytes())
            if result.error:
                self.close()
                raise (EngineError if result.engine else RunError)(result.error, hint=result.hint)
            found = _owned(worker.take(result))
            part = job.reducer()
            part.take(found.part)
            probes = _of_clients(found.probes)
            outcomes = [Outcome(*fields, probe=probes.get(fields[0])) for fields in result.outcomes]
            yield Done(number, result.run, part, outcomes, _of_clients(found.memories))

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

    def _hire(self, job: Job) -> None:
        if self.workers and self._for == (job.method, job.channel):
            return
        self.close()
        self._for = job.method, job.channel
        for _ in range(self.size):
            self.workers.append(_Worker(self, job, [worker.line for worker in self.workers]))

    def close(self) -> None:
        crew, self.workers = self.workers, []
        for worker in crew:
            worker.line.close()
        for worker in crew:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


class _Worker:
    """The parent's side of one worker: a line to it, and shared memory for the runs it holds."""

    def __init__(self, crew: Forked, job: Job, others: list[Connection[Any, Any]]) -> None:
        self.slots = [Arena() for _ in range(AHEAD)]
        self.free = list(range(AHEAD))
        self.line, theirs = multiprocessing.Pipe()
        inherited = [*others, self.line]
        self.process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(crew, job.method, job.channel, theirs, inherited, self.slots), daemon=True
        )
        self.process.start()
        theirs.close()

    def give(self, run: int, clients: list[int], own: Record) -> None:
        slot = self.free.pop(0)
        self.line.send_bytes(_encode(_Run(run, slot, clients, self.slots[slot].write(own))))

    def take(self, result: _Result) -> Record:
        self.free.append(result.slot)
        return self.slots[result.slot].read(result.result)


# --- the worker's side ----------------------------------------------------------------------------------------------


def _serve(
    crew: Forked,
    method: Method,
    channel: Channel | None,
    line: Connection[Any, Any],
    inherited: list[Connection[Any, Any]],
    slots: list[Arena],
) -> None:
    """A worker's life: orders in, results out, until the line closes."""
    for sign in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # the parent decides what they mean: terminals, `timeout` and
        signal.signal(sign, signal.SIG_IGN)  # schedulers send them to the whole group
    for other in inherited:
        other.close()
    torch.set_num_threads(1)
    runner = Sequential(crew.task, crew.data, torch.device("cpu"))
    runner.steps = crew.steps
    setting, both = None, Record()
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        while True:
            order = _orders.decode(line.recv_bytes())
            if isinstance(order, _Setting):
                setting, both = order, crew.shared.read(order.shared)
                continue
            assert setting is not None
            runner.padded = setting.padded
            own = _owned(slots[order.slot].read(order.own))
            work = Work(
                both.shared, _of_clients(own.own), setting.program, setting.reduction,  # type: ignore[arg-type]
                _of_clients(own.forms),
            )  # fmt: skip
            job = Job(
                method, work, order.clients, setting.round, setting.seed, both.expected, setting.epochs,
                cohort=setting.cohort, channel=channel, weights=setting.weights, limits=setting.limits,
                factors=setting.factors,
            )  # fmt: skip
            line.send_bytes(
                _encode(_performed(runner, job, order, _of_clients(own.memories), slots[order.slot]))
            )
    os._exit(0)


def _performed(
    runner: Sequential, job: Job, order: _Run, memories: dict[int, Record], slot: Arena
) -> _Result:
    """A run of clients, done."""
    part, program, after, outcomes = job.reducer(), job.program, {}, []
    try:
        for client in order.clients:
            begun = time.perf_counter()
            answer, memory = runner.answer(
                job.order(client), program, memories.get(client), job.changed, job.cohort
            )
            answer = answer._replace(reply=job.weighed([client], answer.reply))
            found = outcome(answer, job, begun, time.perf_counter())
            outcomes.append(found)
            if not found.refused:
                part.add(client, answer.reply)
                if memory:
                    after[client] = memory
    except AtollError as error:
        return _Result(
            order.run, order.slot, error=error.message, hint=error.hint, engine=isinstance(error, EngineError)
        )
    except Exception as error:  # not a client's work, but what is around it
        return _Result(order.run, order.slot, error=f"{type(error).__name__}: {error}")
    probes = {o.client: o.probe for o in outcomes if o.probe is not None}
    header = slot.write(Record(part=part.held(), memories=_by_client(after), probes=_by_client(probes)))
    plain = [(o.client, o.weight, dict(o.metrics), o.nbytes, o.refused, o.begun, o.ended) for o in outcomes]
    return _Result(order.run, order.slot, header, plain)


def _by_client(found: dict[int, Any]) -> Record:
    return Record({str(client): value for client, value in found.items()})


def _of_clients(found: Record) -> dict[int, Any]:
    return {int(client): value for client, value in found.items()}


def _owned(record: Record) -> Record:
    """The record out of shared memory."""
    return map_leaves(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, record)  # type: ignore[no-any-return]
