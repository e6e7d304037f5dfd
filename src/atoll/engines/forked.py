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
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, ClassVar

import torch

from atoll.contract import Channel, Job, Memories, Method
from atoll.data import FederatedData
from atoll.engines import errands
from atoll.engines.arena import Arena
from atoll.engines.pool import AHEAD, Crew, Done, Pool
from atoll.engines.sequential import Sequential
from atoll.engines.steps import Steps
from atoll.errors import EngineError, RunError
from atoll.machine import cores
from atoll.task import Task
from atoll.tensors import Record, map_leaves

__all__ = ["Processes"]


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
        setting = errands.encode(errands.Setting.of(job, padded, self.shared.write))
        for number, worker in enumerate(self.workers):
            with self._lost(number):
                worker.line.send_bytes(setting)

    def free(self) -> Sequence[int]:
        held = [AHEAD - len(worker.free) for worker in self.workers]
        return [number for few in range(AHEAD) for number, runs in enumerate(held) if runs <= few]

    def give(self, worker: int, run: int, clients: Sequence[int], job: Job, memories: Memories) -> None:
        with self._lost(worker):
            self.workers[worker].give(run, list(clients), errands.given(clients, job, memories))

    def done(self, job: Job) -> Iterator[Done]:
        lines = {worker.line: number for number, worker in enumerate(self.workers)}
        for line in wait(list(lines)):
            number = lines[line]  # type: ignore[index]
            worker = self.workers[number]
            with self._lost(number):
                result = errands.results.decode(worker.line.recv_bytes())
            if result.error:
                self.close()
                raise errands.failure(result)
            yield errands.done(number, result, job, _owned(worker.take(result)))

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
        self.line.send_bytes(errands.encode(errands.Errand(run, slot, clients, self.slots[slot].write(own))))

    def take(self, result: errands.Result) -> Record:
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
    work = partial(errands.in_turn, runner)
    setting, both = None, Record()
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        while True:
            order = errands.orders.decode(line.recv_bytes())
            if isinstance(order, errands.Setting):
                setting, both = order, crew.shared.read(order.shared)
                continue
            assert setting is not None
            runner.padded = setting.padded
            slot = slots[order.slot]
            own = _owned(slot.read(order.own))
            job = errands.job(method, channel, setting, both, order, own)
            line.send_bytes(errands.encode(errands.performed(work, job, order, own, slot.write)))
    os._exit(0)


def _owned(record: Record) -> Record:
    """The record out of shared memory."""
    return map_leaves(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, record)  # type: ignore[no-any-return]
