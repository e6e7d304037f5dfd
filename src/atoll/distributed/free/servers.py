"""All servers of a run together: what is made before any process is, what each does, and what the keeper asks."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from atoll import codec
from atoll.distributed.free import frames
from atoll.distributed.free.frames import Frame, Line, listen
from atoll.distributed.free.room import Room, packed, unpack
from atoll.distributed.free.server import Plan, Server
from atoll.distributed.free.shard import STALE, Shard, cut
from atoll.distributed.free.worker import push
from atoll.distributed.learner import Replica
from atoll.distributed.strategies.server import ParameterServer
from atoll.optimizers import optimizer
from atoll.tensors import Record, Tensors

if TYPE_CHECKING:
    from atoll.distributed.play import Job

__all__ = ["Servers"]

_SPARE = 1 << 16  # bytes of a record beside its tensors


class Servers:
    """The topology of a parameter server.

    Args:
        replica: a model of the run, which says how parameters and the optimiser's state lie.
        place: a directory that only this user can enter; sockets are there.
    """

    def __init__(self, job: Job, strategy: ParameterServer, replica: Replica, place: Path) -> None:
        self.job, self.strategy, self.place, self.replica = job, strategy, place, replica
        self.parts = cut(replica.size, strategy.servers)
        self.token = secrets.token_bytes(frames.TOKEN)
        self.states = self._states(replica)

    def doors(self, attempt: int) -> list[Path]:
        """Where the servers of an attempt listen."""
        return [self.place / f"server-{attempt}-{at}" for at in range(self.strategy.servers)]

    def _states(self, replica: Replica) -> list[Record]:
        """What each server has of a model; the first has the buffers too."""
        none = torch.zeros(0, dtype=torch.uint8)
        return [
            _state(replica, part).replace(buffers=none if at else packed(replica.module))
            for at, part in enumerate(self.parts)
        ]

    # --- a server, a worker -------------------------------------------------------------------------------------

    def serve(self, at: int, attempt: int) -> None:
        """What a server does."""
        job, training = self.job, self.job.training
        form = codec.Form.of(self.states[at])

        def begin(state: Record) -> Shard:
            solver = optimizer(training.optimizer)
            return Shard(state.params, state.state, solver, self.strategy.applies, self.strategy.compensation)

        plan = Plan(
            job.workers,
            lambda descriptor: Room(self.replica, descriptor),
            self.parts[at],
            begin,
            form,
            _limit(form),
            self.strategy.bound,
            training.shards == "shared",
            not at,
            job.steps,
            job.every,
            lambda step: training.lr * training.factor(step),
            self._present,
            training.timeout,
        )
        with torch.no_grad():
            Server(plan, listen(self.doors(attempt)[at]), self.token).run()

    def _present(self, step: int, workers: list[int]) -> float:
        shares = [self.job.reading.share(step, worker) for worker in workers]
        found = sum(len(share.rows) for share in shares)
        return found / shares[0].count if found else 1.0

    def work(self, replica: Replica, rank: int, attempt: int) -> None:
        """What a worker does."""
        push(self.job, replica, rank, self.doors(attempt), self.token)

    # --- the keeper ---------------------------------------------------------------------------------------------

    def begin(self, replica: Replica, step: int, attempt: int) -> None:
        """Have the servers go on from a model, after so many steps."""
        timeout, number = self.job.training.timeout, self.job.workers
        self._lines = [Line(door, self.token, number, timeout) for door in self.doors(attempt)]
        for line, state in zip(self._lines, self._states(replica), strict=True):
            line.patient()
            line.send(Frame(frames.LOAD, number, step=step), codec.encode(state))
        self._ask(step)

    def _ask(self, step: int) -> None:
        """Ask for the state after the next report's steps; of those that do not know when that is, later."""
        asked = self._lines if not math.isinf(self.strategy.bound) else self._lines[:1]
        if step < self.job.steps:
            for line in asked:
                line.send(Frame(frames.ASK, self.job.workers, step=step + self.job.every))

    def at(self, replica: Replica, step: int) -> Mapping[str, float]:
        """Wait until so many steps are done: the model then, into `replica`, and what was counted on the way."""
        found = [self._taken(0)]
        for at, line in enumerate(self._lines[1:], 1):
            if math.isinf(self.strategy.bound):
                line.send(Frame(frames.ASK, self.job.workers))
            found.append(self._taken(at))
        self._ask(step)
        with torch.no_grad():
            for part, each in zip(self.parts, found, strict=True):
                replica.params[part] = each.params
                for name, value in each.state.items():
                    if isinstance(value, Tensors):
                        replica.state[name]["all"][part] = value["all"]
                    else:
                        replica.state[name].copy_(value)
            unpack(replica.module, found[0].buffers)
        counts = sum(each.stale for each in found)
        return {
            "loss": found[0].loss / max(1, found[0].samples),
            "samples": found[0].samples,
            "seconds": found[0].seconds,
            "bytes": sum(each.bytes for each in found),
            "waiting": found[0].waited,
            "memory": found[0].memory,
            "staleness": sum(each.delay for each in found) / max(1, int(counts.sum())),
            "stale": counts[: int(counts.nonzero().max()) + 1].tolist() if counts.any() else [],
        }

    def _taken(self, at: int) -> Any:
        form = codec.Form.of(
            Record(
                **self.states[at], stale=torch.zeros(STALE, dtype=torch.int64), delay=0, widest=0, loss=0.0,
                samples=0, seconds=0.0, bytes=0, waited=0.0, memory=0,
            )
        )  # fmt: skip
        return codec.decode(bytes(self._lines[at].blob(frames.WHOLE, _limit(form))), form)

    def end(self) -> None:
        """It is over."""
        for line in self._lines:
            line.send(Frame(frames.END, self.job.workers))
            line.close()


def _state(replica: Replica, part: slice) -> Record:
    """A server's part of a model: parameters, and the optimiser's state."""
    state = {
        name: Tensors(all=value["all"][part]) if isinstance(value, Tensors) else value
        for name, value in replica.state.items()
    }
    return Record(params=replica.params[part], state=Record(state))


def _limit(form: codec.Form) -> int:
    """Bytes of a record of this form, at most."""
    if form.shape or not form.fields:
        return math.prod(form.shape) * 8 + 8
    return _SPARE + sum(_limit(each) for each in form.fields.values())
