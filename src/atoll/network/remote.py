"""The engine of a deployed federation: it has clients' work done by nodes, and reduces what they answer."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from atoll.codec import pieces
from atoll.contract import Answer, Gathering, Job, Mean, Memories, Outcome, Reducer, Reply
from atoll.contract.gather import outcome
from atoll.contract.screen import screen
from atoll.data import FederatedData
from atoll.engines.engine import Engine
from atoll.errors import CodecError
from atoll.network.answers import answer_of
from atoll.network.backing import backed
from atoll.network.blobs import Blobs
from atoll.network.desk import Arrival, Desk, Posted
from atoll.network.sums import Later, Sums, announced, chain_of, hidden
from atoll.network.wire import Blob, Task
from atoll.tensors import Record, named_tensors, nbytes

__all__ = ["Remote", "Waiting"]

_ROOM = 1 << 20
"""Bytes that an answer may have beside its tensors."""

_UNFORMED = 1 << 28
"""Bytes of an answer whose form follows from the client's data."""


@dataclass(frozen=True)
class Waiting:
    """How long a round waits for its replies.

    Args:
        target: replies with which it ends; None: those of all that were asked.
        quorum: replies without which it does not end, whatever the time.
        deadline: seconds after which it ends with those that are there.
    """

    target: int | None = None
    quorum: int = 1
    deadline: float | None = None


class Remote(Engine):
    """Has a job's orders carried out by nodes.

    Args:
        written: whether nodes run steps as they are written, or captured ones.
        waiting: how long training waits; whatever else is asked waits for all who are there.

    What this engine remembers of a client is where the node keeps its memory: the task after which it did.
    """

    name: ClassVar[str] = "nodes"

    def __init__(
        self,
        tasks: Sequence[Any],
        data: FederatedData,
        device: Any,
        *,
        desk: Desk,
        blobs: Blobs,
        written: bool = False,
        waiting: Waiting = Waiting(),
    ) -> None:
        super().__init__(tasks[0], data, device)
        self.desk, self.blobs, self.written, self.waiting = desk, blobs, written, waiting
        self._round, self._call = 0, 0

    def describe(self) -> str:
        return "nodes" + (", steps as written" if self.written else "")

    def settled(self) -> tuple[str, int | None]:
        return ("loop" if self.written else "processes"), None

    def restart(self, round: int, first: int = 0) -> None:
        """The round begins, for the first time or anew: its calls get the same names, numbers from `first` on."""
        self._round, self._call = round, first

    def run(self, job: Job, memories: Memories) -> tuple[Reducer, list[Outcome]]:
        if not job.clients and not hidden(job):  # a call of the round like any other, with nothing to send
            if job.round != self._round:
                self.restart(job.round)
            self._call += 1
            return Gathering(job).result()
        posted = self.posted(job, memories)
        if hidden(job):
            return self._summed(job, posted, memories)
        return self._answered(job, posted, memories)

    def _answered(
        self, job: Job, posted: Mapping[int, Posted], memories: Memories
    ) -> tuple[Reducer, list[Outcome]]:
        """What came of tasks: the answers, reduced."""
        gathering, waiting = Gathering(job), list(job.clients)
        since = self.desk.opened(posted)
        with self.desk.changed:
            self.desk.post(list(posted.values()))
        try:
            used = self._gathered(job, posted, gathering, waiting, memories)
        finally:
            self.desk.withdraw(list(posted.values()))
        assert used is not None
        reducer, outcomes = gathering.result()
        if posted:
            task = next(iter(posted.values())).task
            self.desk.closed(task.id, task.program, outcomes, since)
        return reducer, outcomes

    def _summed(
        self, job: Job, posted: Mapping[int, Posted], memories: Memories
    ) -> tuple[Reducer, list[Outcome]]:
        """The same where nobody sees an update: clients tell that they have one, and sum them up under masks.

        What a client remembers counts if its update does.
        """
        later = Later()
        since = time.perf_counter()
        _, told = self._answered(announced(job), posted, later)
        sums = Sums(self.desk, self.blobs, self.data.names)
        reducer, outcomes, counts = sums.reduced(job, posted, told)
        if posted:
            self.desk.closed(f"{next(iter(posted.values())).task.id}-sum", "secagg", outcomes, since)
        for client in counts:
            memories.put(client, later.kept[client])
        return reducer, outcomes

    # --- what is asked ----------------------------------------------------------------------------------------

    def posted(self, job: Job, memories: Memories, call: int | None = None) -> dict[int, Posted]:
        """A task for each client of a job, under the names that they have whenever this round is played.

        `call` is the number of a call that clients are asked one after the other; None: the next of the round.
        """
        blob = self._kept(job.work.shared if job.work.travels is None else job.work.travels)
        told = {id(part): self._kept(part) for _, part in job.work.differs.values()}
        if call is None:
            if job.round != self._round:
                self.restart(job.round)
            number, self._call = self._call, self._call + 1
            attempt = self._attempt(f"round/{job.round}/{number}", blob, job)
        else:
            number, attempt = call, 0
        place = f"round/{job.round}/{number}"
        task_id = f"{job.round}-{number}-{attempt}"
        setting = None
        if (chain := chain_of(job.channel)) is not None and chain.setting is not None:
            setting = asdict(chain.setting)
        training = job.work.program == "train"
        due = None
        if training and self.waiting.deadline is not None:
            due = time.monotonic() + self.waiting.deadline
        found = {}
        for client in job.clients:
            order, memory = job.order(client), memories.get(client)
            own, (since, part) = job.work.own.get(client), job.work.differs.get(client, (None, None))
            task = Task(
                id=task_id, round=job.round, program=job.work.program,
                shared=blob if since is None else told[id(part)], since=since, keep=job.work.keep,
                instead=None if since is None else blob,
                own=None if own is None else self._kept(own),
                memory=None if memory is None else memory.task,
                epochs=order.epochs, limit=order.limit, setting=setting, cohort=job.cohort,
                most=self._most(job, client),
            )  # fmt: skip
            key = f"{place}/{client}"
            check = _Check(job, client, task.most, self.blobs.place)
            found[client] = Posted(client, task, key, check, due)
        return found

    def _attempt(self, place: str, shared: Blob, job: Job) -> int:
        """Which attempt at this call it is: a new one where it asks for something else than what was written down."""
        what = f"{shared.sha256} {job.work.program} {sorted(job.clients)}"
        known = self.desk.journal.get(f"{place}/what")
        if known is not None and known["what"] == what:
            return int(known["attempt"])
        attempt = 0 if known is None else known["attempt"] + 1
        if known is not None:
            self.desk.journal.drop(f"{place}/")
        self.desk.journal.put(f"{place}/what", {"what": what, "attempt": attempt})
        return attempt

    def _kept(self, order: Record) -> Blob:
        """An order as a body. No sync: after a power cut it is made again."""
        found = pieces(order)
        return Blob(sha256=self.blobs.put(*found, durable=False), size=sum(map(len, found)))

    @staticmethod
    def _most(job: Job, client: int) -> int:
        form = job.form(client)
        if hidden(job):
            return _ROOM
        return 2 * nbytes(form) + _ROOM if form else _UNFORMED

    # --- what is answered -------------------------------------------------------------------------------------

    def _gathered(
        self,
        job: Job,
        posted: Mapping[int, Posted],
        gathering: Gathering,
        waiting: list[int],
        memories: Memories,
    ) -> list[int]:
        """Take answers in the order of clients, as they come, until there is nothing to wait for; who answered."""
        closed: list[int] | None = self.desk.journal.get(self._closing(posted))
        used: list[int] = []
        while waiting:
            while waiting and (closed is None or waiting[0] in closed):
                arrival = self.desk.arrived(posted[waiting[0]].key)
                if arrival is None:
                    break
                self._deliver(job, posted[waiting[0]], arrival, gathering, memories)
                used.append(waiting.pop(0))
            if closed is not None:
                waiting[:] = [client for client in waiting if client in closed]
                if waiting and self.desk.arrived(posted[waiting[0]].key) is None:
                    closed = None  # a body was lost: ask again
                continue
            if waiting:
                with self.desk.changed:
                    closed = self._over(job, posted)
                    if closed is None and self.desk.arrived(posted[waiting[0]].key) is None:
                        self.desk.wait(self._left(posted))
                if closed is not None:
                    self.desk.journal.put(self._closing(posted), closed)
        return used

    @staticmethod
    def _closing(posted: Mapping[int, Posted]) -> str:
        return next(iter(posted.values())).key.rpartition("/")[0] + "/closed" if posted else "nothing"

    @staticmethod
    def _left(posted: Mapping[int, Posted]) -> float | None:
        due = next(iter(posted.values())).due
        return None if due is None else due - time.monotonic()

    def _over(self, job: Job, posted: Mapping[int, Posted]) -> list[int] | None:
        """With whose answers the call ends now, or None where it does not.

        All arrived is no ending of its own: then nobody is waited for.
        """
        missing = [client for client, each in posted.items() if self.desk.arrived(each.key) is None]
        if not missing:
            return None
        training = job.work.program == "train"
        waiting = self.waiting if training else Waiting(quorum=0)
        many, due = len(posted) - len(missing), next(iter(posted.values())).due
        self.desk.state = f"round {job.round}: {many} of {len(posted)} answers ({job.work.program})"
        late = due is not None and time.monotonic() >= due
        absent = not any(self.desk.there(client) for client in missing)
        if not (late or absent or (waiting.target is not None and many >= waiting.target)):
            return None
        came = {client: found for client, each in posted.items() if (found := self.desk.arrived(each.key))}
        sound = sorted((k for k, found in came.items() if found.refused is None), key=lambda k: came[k].ended)
        if waiting.target is not None and len(sound) >= waiting.target:
            first = {*sound[: waiting.target]}
            return [k for k in posted if k in first or (k in came and came[k].refused is not None)]
        if (late or absent) and len(sound) >= waiting.quorum:
            return [client for client in posted if client in came]
        if late or absent:
            self.desk.state = (
                f"round {job.round}: paused, {len(sound)} of {waiting.quorum} replies; waiting for nodes"
            )
        return None

    def taken(self, job: Job, posted: Posted, arrival: Arrival) -> tuple[Answer | None, Outcome]:
        """A client's answer by itself, None where it cannot be used, and what it came to."""
        if arrival.sha256 is None:
            refused = Outcome(
                posted.client, 0.0, {}, arrival.size, arrival.refused, arrival.begun, arrival.ended
            )
            return None, refused
        answer = answer_of(self.blobs.mapped(arrival.sha256), job, posted.client, posted.task.most)
        found = outcome(answer, job, arrival.begun, arrival.ended)
        return (None if found.refused else answer), found

    def _deliver(
        self, job: Job, posted: Posted, arrival: Arrival, gathering: Gathering, memories: Memories
    ) -> None:
        client = posted.client
        if arrival.sha256 is None or arrival.refused is not None:
            gathering.refuse(
                client, arrival.refused or "nothing came", arrival.begun, arrival.ended, arrival.size
            )
            return
        blob = self.blobs.mapped(arrival.sha256)
        copied = type(job.reducer()) is not Mean  # a mean looks at each number once, wherever it lies
        answer = answer_of(blob, job, client, posted.task.most, copied=copied)
        found = gathering.deliver(answer, arrival.begun, arrival.ended)
        if not found.refused:
            memories.put(client, Record(task=posted.task.id))

    def close(self) -> None:
        """Nothing is held here."""


class _Check:
    """Looks at an answer before it is accepted.

    Args:
        place: where what is unpacked of a large one lies.
    """

    def __init__(self, job: Job, client: int, most: int, place: Path) -> None:
        self.job, self.client, self.most, self.place = job, client, most, place

    def __call__(self, blob: Any) -> str | None:
        with backed(self.place, nbytes(self.job.form(self.client))):
            return self._problem(blob)

    def _problem(self, blob: Any) -> str | None:
        try:
            answer = answer_of(blob, self.job, self.client, self.most, copied=False)
        except CodecError as error:
            return error.message
        form = announced(self.job).form(self.client)
        if hidden(self.job) and answer.reply.values:
            return "its update is in it, which is not to leave the node but under masks"
        problem = screen(answer.reply, form) or _implausible(answer.reply)
        if (
            problem is None and form and self.job.channel is None
        ):  # a channel's transforms send what they will
            problem = _otherwise(answer.reply.values, form)
        return problem


_HEAVIEST = float(1 << 40)
_LARGEST = float(1 << 63)
"""The square of anything larger is no float32: no honest training survives it, and sums with it leave the numbers."""


def _implausible(reply: Reply) -> str | None:
    """What no honest client says of itself, or None."""
    if float(reply.weight) > _HEAVIEST:
        return f"its weight is {float(reply.weight):g}"
    for name, value in named_tensors(reply.values):
        if value.is_floating_point() and value.numel() and (most := _farthest(value)) > _LARGEST:
            return f"{name} has the number {most:g}"
    for name, value in reply.metrics.items():
        numbers = value.double().flatten().tolist() if isinstance(value, Tensor) else [float(value)]
        if not all(math.isfinite(each) for each in numbers):
            return f"its {name} is not finite"
    return None


def _farthest(value: Tensor) -> float:
    """The largest absolute number."""
    low, high = value.aminmax()
    return max(-float(low), float(high))


def _otherwise(values: Record, form: Record) -> str | None:
    """What a reply has that was not asked for, or None; its shapes have been looked at."""
    due = dict(named_tensors(form))
    for name, value in named_tensors(values):
        if name.partition(".")[0] not in form:
            return f"it has {name!r}, which nobody asked for"
        if name in due and value.dtype != due[name].dtype:
            return f"{name} is {value.dtype}, not {due[name].dtype}"
    return None
