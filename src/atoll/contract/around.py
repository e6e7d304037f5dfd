"""A program around a program: the client half of what happens to an update on its way to the server."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from atoll.contract.change import Change
from atoll.contract.messages import ClientData, Plan, Reply
from atoll.contract.method import Program
from atoll.task import Batch, Task
from atoll.tensors import Record

__all__ = ["Around", "Through"]


class Through(Program):
    """Hands everything on to the program `inner`; subclasses do something beside it."""

    inner: Program

    @property
    def reads(self) -> tuple[str, ...]:
        return self.inner.reads

    def plan(self) -> Plan:
        return self.inner.plan()

    def remember(self, task: Task, received: Record) -> Record:
        return self.inner.remember(task, received)

    def recall(self, task: Task, received: Record, stored: Record | None) -> Record:
        return self.inner.recall(task, received, stored)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return self.inner.begin(task, received, memory, data)

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        return self.inner.step(task, local, batch)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        return self.inner.finish(task, local, data)


@dataclass(frozen=True)
class Around(Through):
    """Runs a program, and does something to its reply.

    By itself it changes nothing and only keeps the two memories apart: what a client remembers is then
    {method, channel}, the program's and that of what is around it; either is absent while it is empty. Subclasses
    override `own` and `send`. Both are pure and written for one client, so every engine has them for free.

    Args:
        inner: the program.
        change: which field of its reply is the client's change (`Method.change`).
    """

    inner: Program
    change: Change | None = None

    def own(self, task: Task, received: Record) -> Record:
        """What is remembered here before the first round."""
        return Record()

    def send(
        self, reply: Reply, received: Record, memory: Record, own: Record, key: Tensor
    ) -> tuple[Reply, Record]:
        """The reply that is sent instead of `reply`, and what is remembered here.

        Args:
            received: what the client received.
            memory: what the program remembered at the beginning of the round.
            own: what was remembered here.
            key: a random stream of this client and round, int64 scalar.
        """
        return reply, own

    # --- the program around -----------------------------------------------------------------------------------

    def remember(self, task: Task, received: Record) -> Record:
        return self.recall(task, received, None)

    def recall(self, task: Task, received: Record, stored: Record | None) -> Record:
        parts = stored or Record()
        own = parts["channel"] if "channel" in parts else self.own(task, received)
        return Record(method=self.inner.recall(task, received, parts.get("method")), channel=own)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        inner = self.inner.begin(task, received, memory.method, data)
        return Record(inner=inner, received=received, memory=memory)

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        return local.replace(inner=self.inner.step(task, local.inner, batch))

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, after = self.inner.finish(task, local.inner, data)
        memory = local.memory
        sent, own = self.send(reply, local.received, memory.method, memory.channel, data.key)
        return sent, Record({name: part for name, part in (("method", after), ("channel", own)) if part})
