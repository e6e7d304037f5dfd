"""A client whose local training is a job of several processes: a silo with more than one core to give.

Every process does the same client work on the same order, step by step, and computes the gradient of its own part of
every batch; gradients are summed, so that all hold the same state, and what comes out is what one process would have
made of the whole batch. The first process is the one that was asked: it answers, and the server knows nothing of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from atoll import codec, seeds, spec
from atoll.contract import Answer, Order, Plan, Program
from atoll.data import FederatedData
from atoll.engines.client import Client
from atoll.engines.loop import Loop
from atoll.engines.padding import looks_across
from atoll.engines.reading import gather
from atoll.engines.shared import Shared
from atoll.errors import AtollError, ConfigError, EngineError, RunError
from atoll.machine import threads
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["Silo", "Silos", "processes"]

_PATIENCE = timedelta(seconds=60)  # after which a process that says nothing is given up
_GRACE = 2.0  # seconds in which helpers may say what has befallen them


def processes(text: str) -> int:
    """How many processes a text such as "ddp:2" gives each silo.  Raises ConfigError."""
    given = spec.parse(text, "silo").read({"ddp": (spec.whole("processes", at_least=1),)})
    return int(given["processes"])


# --- the processes --------------------------------------------------------------------------------------------------


class _Told(msgspec.Struct):
    """To a helper: an order and what the client remembers, as the codec writes them, for one of the known programs."""

    program: int
    order: bytes
    memory: bytes | None
    cohort: int


class _Failure(msgspec.Struct):
    """From a helper: what it ended by."""

    message: str
    hint: str | None = None


_encode = msgspec.msgpack.encode
_told = msgspec.msgpack.Decoder(_Told)
_failures = msgspec.msgpack.Decoder(_Failure)


class _Group:
    """The processes of a silo, of which this one is the first.

    Helpers are forked when the first order comes, and have task and data from this process; so they have the programs
    that are known by then. They end with this process, and all of them where one has ended.
    """

    def __init__(
        self, task: Task, data: FederatedData, device: torch.device, programs: Sequence[Program], size: int
    ) -> None:
        self.programs = list(programs)
        self.size = size
        self._closed = False
        self._helpers: list[tuple[Any, Connection[Any, Any]]] = []
        self._place = tempfile.TemporaryDirectory(prefix="atoll-silo-")
        context = get_context("fork")
        lifeline, self._held = context.Pipe(duplex=False)
        sys.stdout.flush()
        sys.stderr.flush()
        for rank in range(1, size):
            ours, theirs = context.Pipe()
            closes = [self._held, ours, *(line for _, line in self._helpers)]
            helper = _Helper(self, rank, task, data, device, theirs, lifeline, closes)
            process = context.Process(target=helper.live, daemon=True)
            process.start()
            theirs.close()
            self._helpers.append((process, ours))
        lifeline.close()
        self._links = self.joined(0)

    def joined(self, rank: int) -> Any:
        """A group of gloo's that nobody else is in: not the default one, and on the loopback interface only."""
        store = dist.FileStore(str(Path(self._place.name) / "meet"), self.size)  # type: ignore[attr-defined]
        _kept.append(store)
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_device(interface=_LOOPBACK)]
        options._timeout = _PATIENCE
        return dist.ProcessGroupGloo(store, rank, self.size, options)

    @property
    def alive(self) -> bool:
        """Whether all helpers are there."""
        return not self._closed and all(process.is_alive() for process, _ in self._helpers)

    def tell(self, told: _Told) -> None:
        """Have helpers begin with an order.  Raises RunError where one is not there."""
        blob = _encode(told)
        try:
            for _, line in self._helpers:
                line.send_bytes(blob)
        except OSError:
            raise self._lost("") from None

    def add(self, value: Tensor) -> None:
        """The sum over processes, in place.  Raises RunError where one is not there."""
        try:
            self._links.allreduce([value]).wait()
        except RuntimeError as error:
            raise self._lost(str(error)) from None

    def _lost(self, why: str) -> RunError:
        """What befell the helper that ended."""
        deadline = time.monotonic() + _GRACE
        hint = "was there memory enough? The next task starts the processes again"
        while time.monotonic() < deadline:
            for rank, (process, line) in enumerate(self._helpers, 1):
                who = f"process {rank} of the silo's {self.size}"
                with contextlib.suppress(EOFError, OSError, msgspec.MsgspecError):
                    if line.poll():
                        words = _failures.decode(line.recv_bytes())
                        return RunError(f"{who} failed: {words.message}", hint=words.hint)
                code = process.exitcode
                if code is not None and code < 0:
                    return RunError(f"{who} was ended by {signal.Signals(-code).name}", hint=hint)
                if code:
                    return RunError(f"{who} ended with exit code {code}", hint=hint)
            time.sleep(0.02)
        return RunError(f"a process of the silo's {self.size} does not answer: {why}".rstrip(": "), hint=hint)

    def close(self, wait_for: float = 5.0) -> None:
        """Let the helpers go, and end those that are still there after so many seconds."""
        self._closed = True
        helpers, self._helpers = self._helpers, []
        for _, line in helpers:
            line.close()
        self._held.close()
        for process, _ in helpers:
            process.join(wait_for)
            if process.is_alive():
                process.kill()
                process.join()
        self._links = None
        self._place.cleanup()


_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
_kept: list[Any] = []  # stores: letting go of one can wait for ever for its file


class _Helper:
    """A further process of a silo."""

    def __init__(
        self,
        group: _Group,
        rank: int,
        task: Task,
        data: FederatedData,
        device: torch.device,
        line: Connection[Any, Any],
        lifeline: Connection[Any, Any],
        closes: Sequence[Connection[Any, Any]],
    ) -> None:
        self.group, self.rank, self.line, self.lifeline, self.closes = group, rank, line, lifeline, closes
        self.task, self.data, self.device = task, data, device

    def live(self) -> None:
        """Orders in, nothing out but steps in common, until the line closes."""
        for sign in (signal.SIGINT, signal.SIGTERM):  # the first process decides what they mean
            signal.signal(sign, signal.SIG_IGN)
        for other in self.closes:
            other.close()
        threading.Thread(target=self._follow, daemon=True).start()
        torch.set_num_threads(1)
        try:
            self._work()
        except (EOFError, ConnectionError):
            os._exit(0)
        except BaseException as error:
            text = error.message if isinstance(error, AtollError) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(OSError):
                self.line.send_bytes(_encode(_Failure(text, getattr(error, "hint", None))))
            os._exit(1)

    def _work(self) -> None:
        links = self.group.joined(self.rank)

        def add(value: Tensor) -> None:
            try:
                links.allreduce([value]).wait()
            except RuntimeError:
                os._exit(0)  # another one ended, and whoever it was is told by the first process

        client = Client(Shared(self.task, self.rank, self.group.size, add), self.data, self.device)
        while True:
            told = _told.decode(self.line.recv_bytes())
            order = Order.of_record(codec.decode(told.order))
            memory = None if told.memory is None else codec.decode(told.memory)
            client.answer(order, self.group.programs[told.program], memory, None, told.cohort)

    def _follow(self) -> None:
        """End this process when the first one has ended."""
        wait([self.lifeline])
        os._exit(0)


# --- the client -----------------------------------------------------------------------------------------------------


class Silo(Client):
    """Runs programs on a client's data by several processes, of which this one is the first.

    Programs without steps are this process's alone.

    Args:
        size: how many processes, each with one thread.

    Raises ConfigError where a model or a loss looks across the samples of a batch, which are not together here.
    """

    def __init__(self, task: Task, data: FederatedData, device: torch.device, size: int) -> None:
        if device.type != "cpu":
            raise ConfigError(
                f"silo = 'ddp:{size}' trains on the CPU, and the device is {device}", hint="set device=cpu"
            )
        if not hasattr(os, "fork") or sys.platform == "darwin" or not dist.is_gloo_available():
            raise EngineError("this system cannot fork safely", hint="leave silo out")
        if (
            type(task).gradient is not Task.gradient
        ):  # in parts it would be the plain one, without what it protects
            raise ConfigError(
                "the processes of a silo divide the plain gradient of a batch, and dp_sgd takes another one",
                hint="leave silo out, or dp_sgd",
            )
        if task.normalises:
            raise ConfigError(
                "BatchNorm needs all samples of a batch, and each process of a silo has a part of them",
                hint="use nn.GroupNorm or nn.LayerNorm in its place, or leave silo out",
            )
        super().__init__(Shared(task, 0, size, self._add), data, device)
        self.plain, self.size = Client(task, data, device), size
        self._group: _Group | None = None
        self._programs: list[Program] = []
        self._tried = False

    def _add(self, value: Tensor) -> None:
        assert self._group is not None
        self._group.add(value)

    def answer(
        self,
        order: Order,
        program: Program,
        memory: Record | None,
        changed: Callable[[Record, Record, Record], Tensors | None] | None = None,
        cohort: int = 1,
    ) -> tuple[Answer, Record]:
        if program.plan() == Plan() or self.size == 1:
            return self.plain.answer(order, program, memory, changed, cohort)
        self._try(order.client)
        with threads(1):  # as the helpers have, so that all come to the same bits
            group = self._hired(program)
            done = False
            try:
                kept = None if memory is None else codec.encode(memory)
                group.tell(
                    _Told(self._programs.index(program), codec.encode(order.to_record()), kept, cohort)
                )
                found = super().answer(order, program, memory, changed, cohort)
                done = True
            finally:
                if not done:  # they wait for a step that does not come
                    group.close(0)
        return found

    def _try(self, client: int) -> None:
        """Refuse, once, what is not the same in parts."""
        samples = self.data.samples(client)
        if self._tried or samples is None or not samples.count:
            return
        inputs, targets = gather(samples, torch.arange(min(4, samples.count)))
        key = torch.tensor(seeds.address(0, "silo"))
        params, buffers = self.plain.task.initial()
        with torch.no_grad():
            if looks_across(
                self.plain.task, params, buffers, Batch(inputs, targets, torch.ones(len(targets)), key)
            ):
                raise ConfigError(
                    "the model or the loss looks across the samples of a batch, and each process of a silo has a part"
                    " of them",
                    hint="leave silo out",
                )
        self._tried = True

    def _hired(self, program: Program) -> _Group:
        """The processes, which know the program."""
        known = self._group
        if program not in self._programs:
            self._programs = [*self._programs[-7:], program]
        if known is None or not known.alive or known.programs != self._programs:
            self.close()
            self._group = known = _Group(self.plain.task, self.data, self.device, self._programs, self.size)
        return known

    def close(self) -> None:
        """Let the other processes go."""
        if self._group is not None:
            self._group.close()
            self._group = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


class Silos(Loop):
    """One client after another, each by several processes: a simulation of silos that are jobs."""

    name: ClassVar[str] = "loop"

    def __init__(self, task: Task, data: FederatedData, device: torch.device, size: int) -> None:
        self.silo = Silo(task, data, device, size)
        super().__init__(task, data, device, self.silo)
        self.size = size

    def describe(self) -> str:
        return f"{self.name}, {self.size} processes a silo"

    def close(self) -> None:
        self.silo.close()
