"""Worker processes on a Ray cluster: one more crew beside the forked one, with the same schedule and the same bits.

Ray starts the actors, replaces what dies and carries bytes. Task and data go to its store once; resident data lie there
once a machine, where all actors of the machine read them, and populations made on demand are made, and kept, by the
actor that has the client. So no client's data travel with work. A run of clients that was lost with its actor, or with
a whole node, is given again: it is a function of what was sent, so nothing of the result depends on who dies.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch

from atoll.contract import Channel, Job, Memories, Method
from atoll.data import FederatedData
from atoll.engines import errands
from atoll.engines.actor import Actor, alike, read, written
from atoll.engines.cluster import Cluster, check
from atoll.engines.pool import AHEAD, Crew, Done, Lost, Pool
from atoll.errors import ConfigError, EngineError, RunError
from atoll.machine import cores
from atoll.task import Task
from atoll.tensors import to_device

__all__ = ["Actors", "Ray"]

PATIENCE = 120.0
"""Seconds that a cluster may take until one actor at least is there."""

TRIES = 5
"""So often a run of clients may be lost with its actor; then it is taken for the cause."""


class Ray(Pool):
    """Runs clients in actors of a Ray cluster.

    Args:
        workers: how many actors; by default one for each core of the cluster, or for each share of a GPU.
        address: of the cluster ("10.0.0.1:6379", or "auto" on one of its nodes); None: one of this machine's own, which
            ends with the run.
        gpus: the share of a GPU that each actor has; 0: it trains on the CPU.
        beside: how many such engines share the actors' places, each for clients of another architecture.

    Raises MissingExtraError without Ray, ConfigError where nobody answers at the address, EngineError for a server on
    another device than the clients.
    """

    name: ClassVar[str] = "ray"

    def __init__(
        self,
        task: Task,
        data: FederatedData,
        device: torch.device,
        workers: int | None = None,
        address: str | None = None,
        gpus: float = 0.0,
        beside: int = 1,
    ) -> None:
        if device.type != "cpu" and not gpus:
            raise EngineError(
                "without ray_gpus Ray's actors train on the CPU",
                hint='set device="cpu", or ray_gpus=1, the share of a GPU that an actor has',
            )
        check(address)
        self.wanted = workers
        super().__init__(task, data, device, Actors(task, data, device, workers, address, gpus, beside))

    def describe(self) -> str:
        assert isinstance(self.crew, Actors)
        return f"{self.name}, {self.crew.text}{self.unpadded}"

    def settled(self) -> tuple[str, int | None]:
        return self.name, self.wanted

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


class Actors(Crew):
    """Actors of a cluster, hired when the first round comes; a dead one has its place taken by another."""

    def __init__(
        self,
        task: Task,
        data: FederatedData,
        device: torch.device,
        workers: int | None,
        address: str | None,
        gpus: float,
        beside: int,
    ) -> None:
        self.task, self.data, self.device = task, data, device
        self.workers, self.address, self.gpus, self.beside = workers, address, gpus, beside
        self.cluster: Cluster | None = None
        self.actors: list[_Actor] = []
        self.text = "no actors yet"
        self._parts: tuple[Any, Any] = (None, None)  # task and data, as they lie in the store
        self._for: tuple[Method, Channel | None] | None = None
        self._round: tuple[bytes, Any] | None = None
        self._lost: dict[int, int] = {}

    # --- actors -----------------------------------------------------------------------------------------------

    def open(self, job: Job, padded: bool) -> None:
        if self.cluster is None:
            self._connect()
        assert self.cluster is not None
        octets = None

        def write(record: Any) -> Any:
            nonlocal octets
            header, octets = written(record)
            return header

        message = errands.encode(errands.Setting.of(job, padded, write))
        changed = self._for != (job.method, job.channel)
        self._for, self._round, self._lost = (
            (job.method, job.channel),
            (message, self.cluster.ray.put(octets)),
            {},
        )
        if not self.actors:
            self.actors = [self._hired() for _ in range(self._size())]
            self.text = f"{len(self.actors)} actor{'s' if len(self.actors) > 1 else ''}"
            return
        for actor in self.actors:
            actor.held.clear()
            if changed:
                actor.handle.hire.remote(*self._for)
            actor.handle.open.remote(*self._round)

    def _connect(self) -> None:
        self.cluster = Cluster(self.address, self.workers or cores())
        ray = self.cluster.ray
        try:
            self._parts = ray.put(self.task), self.cluster.put_data(self.data)
        except Exception as error:  # of any kind, from what the user's objects hold
            self.close()
            cause = error.__cause__ or error
            raise EngineError(
                f"the model or the data cannot be sent to other machines: {type(cause).__name__}: {_first_line(cause)}",
                hint='it holds something that belongs to this process; engine="processes" sends nothing',
            ) from error
        share = {"num_gpus": self.gpus / self.beside} if self.gpus else {"num_cpus": 1 / self.beside}
        self._kind = ray.remote(max_restarts=0, enable_task_events=False, **{"num_cpus": 0, **share})(Actor)

    def _size(self) -> int:
        """How many actors there are to be."""
        if self.workers is not None:
            return self.workers
        assert self.cluster is not None
        found = self.cluster.ray.cluster_resources()
        places = found.get("GPU", 0.0) / self.gpus if self.gpus else found.get("CPU", 0.0)
        if places < 1:
            what = "GPU" if self.gpus else "core"
            raise ConfigError(
                f"the Ray cluster has no {what} for an actor",
                hint=f"it has {_resources(found)}; set workers or ray_gpus",
            )
        return int(places + 1e-6)

    def _hired(self) -> _Actor:
        assert self._for is not None and self._round is not None
        actor = _Actor(self._kind.remote(*self._parts, bool(self.gpus), torch.get_default_dtype()))
        actor.handle.hire.remote(*self._for)
        actor.handle.open.remote(*self._round)
        return actor

    def close(self) -> None:
        actors, self.actors = self.actors, []
        cluster, self.cluster = self.cluster, None
        self._parts, self._round = (None, None), None
        if cluster is not None:
            try:
                for actor in actors:
                    cluster.ray.kill(actor.handle)
            finally:
                cluster.close()

    # --- runs of clients --------------------------------------------------------------------------------------

    def free(self) -> Sequence[int]:
        held = [AHEAD if actor.coming is not None else len(actor.held) for actor in self.actors]
        return [number for few in range(AHEAD) for number, runs in enumerate(held) if runs <= few]

    def pick(self, worker: int, runs: Sequence[Sequence[int]]) -> int:
        """The first of the next runs that begins with a client of the worker's, who may have its data; else the first.

        Far ahead nobody looks: parts that arrive early have to wait.
        """
        count = len(self.actors)
        near = runs[: AHEAD * count]
        return next((at for at, run in enumerate(near) if home(run[0], count) == worker), 0)

    def give(self, worker: int, run: int, clients: Sequence[int], job: Job, memories: Memories) -> None:
        header, octets = written(errands.given(clients, job, memories))
        message = errands.encode(errands.Errand(run, 0, list(clients), header))
        actor = self.actors[worker]
        actor.held[actor.handle.run.remote(message, octets)] = run

    def done(self, job: Job) -> Iterable[Done | Lost]:
        assert self.cluster is not None
        ray = self.cluster.ray
        waited = {ref: number for number, actor in enumerate(self.actors) for ref in actor.awaited}
        working = any(actor.coming is None for actor in self.actors)
        ready, _ = ray.wait(list(waited), timeout=None if working else PATIENCE)
        if not ready:
            found = ray.available_resources()
            self.close()
            raise RunError(
                f"no actor of the Ray cluster was there within {PATIENCE:.0f} s",
                hint=f"it has {_resources(found)} left; `ray status` tells more",
            )
        for ref in ready:
            number = waited[ref]
            actor = self.actors[number]
            try:
                found = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                self.close()
                raise RunError(f"an actor failed: {_last_line(error)}") from None
            except ray.exceptions.RayError as error:
                yield self._replaced(number, error)
                continue
            if ref == actor.coming:
                actor.coming = None
                self._check(found)
                yield Lost(())
                continue
            del actor.held[ref]
            message, octets = found
            result = errands.results.decode(message)
            if result.error:
                self.close()
                raise errands.failure(result)
            record = to_device(read(result.result, octets), self.device)
            yield errands.done(number, result, job, record, time.perf_counter() - result.now)

    def _replaced(self, number: int, error: Exception) -> Lost:
        """Another actor in the place of one that is gone, and what it held."""
        assert self.cluster is not None
        gone = self.actors[number]
        if getattr(error, "actor_init_failed", False):
            self.close()
            raise RunError(
                f"an actor could not begin: {_last_line(error)}",
                hint="every node needs what the driver imports: packages, and modules of your own (PYTHONPATH)",
            ) from None
        runs = list(gone.held.values())
        for run in runs[:1] or [-1]:  # what it was doing; the others only waited
            self._lost[run] = self._lost.get(run, 0) + 1
            if self._lost[run] >= TRIES:
                self.close()
                raise RunError(
                    f"{TRIES} actors of the Ray cluster ended unexpectedly, one after the other: {_last_line(error)}",
                    hint="they may have run out of memory; try fewer workers",
                ) from None
        with contextlib.suppress(Exception):  # if it was only out of reach, it is to end now
            self.cluster.ray.kill(gone.handle)
        self.actors[number] = self._hired()
        return Lost(runs)

    def _check(self, there: dict[str, str]) -> None:
        """Refuse a node where the same work has other bits."""
        here = alike()
        for what, mine in here.items():
            if there[what] != mine and not (what == "instructions" and self.gpus):
                self.close()
                raise ConfigError(
                    f"a node of the Ray cluster has {what} {there[what]}, and the driver {mine}",
                    hint="all nodes need the same versions and the same kind of processor for the same bits",
                )


class _Actor:
    """The driver's side of one actor: whether it is there yet, and which runs it holds."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.coming: Any = handle.hello.remote()
        self.held: dict[Any, int] = {}

    @property
    def awaited(self) -> list[Any]:
        """What to wait for: that it is there, then the oldest of its runs."""
        return [self.coming] if self.coming is not None else list(self.held)[:1]


def home(client: int, count: int) -> int:
    """The actor, of so many, that a client's data are with, where that makes a difference."""
    return (client * 2654435761 >> 16) % count  # neighbours are strewn (Knuth's multiplicative hash)


def _resources(found: dict[str, float]) -> str:
    return f"{found.get('CPU', 0.0):g} cores and {found.get('GPU', 0.0):g} GPUs"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()
