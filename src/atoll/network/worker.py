"""Where a node works: a process of its own, which user code may crash, hang or fill up without harm to the node.

It is told what to do by frames on a pipe, and reads and writes bodies as files. It opens no connection.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from atoll.durable import replaced
from atoll.errors import ConfigError
from atoll.network.wire import DataForm, Plan, Task

__all__ = ["Begin", "Declined", "Do", "Done", "Failed", "Ready", "failed", "receive", "send", "serve"]


class Begin(msgspec.Struct, tag=True, frozen=True):
    """The first frame: what the run is, what data are here, and how much memory may be used (bytes; 0: any)."""

    plan: Plan
    source: str
    number: int
    name: str
    place: str
    """The node's directory: what it has spent of its privacy is written there."""
    public: str | None = None
    """The file of public inputs."""
    policy: str | None = None
    """A file that says what the node allows."""
    admitted: dict[str, str] = {}
    """Code of the node's own that the plan may name: name -> key."""
    memory: int = 0
    threads: int = 1
    silo: str | None = None
    """What trains here together ("ddp:2"), where it is more than this process."""
    device: str = "cpu"
    """What it computes on; "auto": a GPU where there is one."""
    start: str | None = None
    """The file of the numbers that nobody sends."""
    tokenizer: str | None = None
    """The folder of the tokenizer that texts are read by."""
    precision: str = "float32"
    """How gradients are computed, as `accumulate` and `recompute` (`atoll.thrift`)."""
    accumulate: int = 1
    recompute: bool = False


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The data could be read: their form, what to tell the person who decides, and what the policy says to it."""

    form: DataForm
    text: str
    refused: list[str]
    hours: tuple[str, ...]
    smallest: int
    """Nodes that a round must have."""


class Do(msgspec.Struct, tag=True, frozen=True):
    """A task: the files of what is received, of the memory to begin with, and where results go."""

    task: Task
    shared: str
    own: str | None
    memory: str | None
    answer: str
    after: str
    vector: str
    """Where the update goes that is hidden in a secure sum; it is not in the answer then."""
    noise: bytes | None = None
    """The key of what is drawn on the update's way; None: it follows from the run's seed, and protects nobody."""
    since: str | None = None
    """The file of the model that the one received is told from."""
    keep: str | None = None
    """Where the model received is kept, for later ones to be told from."""


class Done(msgspec.Struct, tag=True, frozen=True):
    """The answer is written, and what is remembered after it."""

    seconds: float
    """For which the client worked; reading and writing come on top."""
    sha256: str
    """Of the answer."""


class Declined(msgspec.Struct, tag=True, frozen=True):
    """The node's policy does not allow it."""

    reason: str


class Failed(msgspec.Struct, tag=True, frozen=True):
    """It could not be done."""

    message: str
    hint: str | None = None


def failed(error: Exception) -> Failed:
    """What an error comes to, in words."""
    if isinstance(error, MemoryError):
        return Failed("it ran out of the memory that it may use")
    text = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
    return Failed(text, getattr(error, "hint", None))


Frame = Begin | Ready | Do | Done | Declined | Failed
_FRAMES: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def send(stream: BinaryIO, frame: Frame) -> None:
    """Write a frame: four bytes of length, and msgpack."""
    blob = msgspec.msgpack.encode(frame)
    stream.write(len(blob).to_bytes(4, "big") + blob)
    stream.flush()


def receive(stream: BinaryIO) -> Frame | None:
    """The next frame; None at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    blob = stream.read(int.from_bytes(head, "big"))
    return _FRAMES.decode(blob)


# --- the process ----------------------------------------------------------------------------------------------------


class _Work:
    """A node's client half; `make` gives its data, where `begin.source` is no more than what these are called."""

    def __init__(self, begin: Begin, make: Callable[[], Any] | None = None) -> None:
        import torch

        from atoll import own
        from atoll.assembly import build_method, device_named
        from atoll.channel import Chain
        from atoll.channel.down import Down
        from atoll.engines.client import Client
        from atoll.engines.padding import Padding
        from atoll.engines.sequential import Sequential
        from atoll.engines.silo import Silo, processes
        from atoll.guarding import stated
        from atoll.network.allowance import Allowance
        from atoll.network.approval import approval
        from atoll.network.backing import backed
        from atoll.network.base import remembered
        from atoll.network.here import Here
        from atoll.network.models import models_of
        from atoll.network.policy import Policy
        from atoll.network.rows import unpacked
        from atoll.task import architecture
        from atoll.thrift import Precision, Thrift

        for name, key in begin.admitted.items():
            own.admit(name, key)
        torch.set_num_threads(begin.threads)
        plan, self.number = begin.plan, begin.number
        if plan.dp_sgd is not None:
            raise ConfigError(
                f"the plan says dp_sgd = {plan.dp_sgd!r}, and nodes do not take private steps yet",
                hint="talk to whoever runs the coordinator: noise in the channel (local) protects this node as a whole",
            )
        self.data = Here.load(begin.source, begin.number, begin.name, plan, make, begin.tokenizer)
        if begin.public is not None:
            known = self.data.publish(unpacked(Path(begin.public).read_bytes()))
            assert isinstance(known, Here)
            self.data = known
        self.policy = policy = Policy() if begin.policy is None else Policy.read(begin.policy)
        self.refused = policy.check_plan(plan, self.data.columns, self.data.size(begin.number))
        self.device = device = device_named("cpu" if begin.silo is not None else begin.device)
        self.place, self.method = Path(begin.place), build_method(plan.method, plan.hyper)
        with backed(self.place):
            made = models_of(plan, self.data, begin.start)
        for each in made:
            each.thrift = Thrift(cast(Precision, begin.precision), begin.accumulate, begin.recompute)
        self.text = "" if self.refused else approval(plan, self.data, policy, made, device)
        self.allowance = None
        if policy.epsilon is not None and not self.refused:
            self.allowance = Allowance(self.place / "privacy.jsonl", policy, plan, self.data)
        self.base = remembered(made, begin.start, [plan.model, plan.adapter], self.place)
        if begin.start is not None and self.base is None:
            raise ConfigError(
                f"--base {begin.start}: all of this run's model is trained, and comes from the coordinator",
                hint="leave --base out",
            )
        for each in made:
            each.hold(device)
        self.task = made[architecture(begin.number, len(made))]
        channel, _ = stated(plan.channel)
        self.chain = channel if isinstance(channel, Chain) else None
        self.down = None if plan.down is None else Down.parse(plan.down)
        self.plan = plan
        written = plan.engine == "loop" or begin.silo is not None or device.type != "cpu"
        self.padding = None if written else Padding(self.task, self.data, device)
        self.client = (Client if written else Sequential)(self.task, self.data, device)
        if begin.silo is not None:
            self.client = Silo(self.task, self.data, device, processes(begin.silo))
        self.judging = self.client if self.task is made[0] else Client(made[0], self.data, device)
        """Judges the global model, which is of the first architecture."""

    def ready(self) -> Ready:
        from atoll.network.elsewhere import form_of

        hours = self.policy.hours
        windows = (hours,) if isinstance(hours, str) else hours or ()
        form = form_of(self.data, self.number)
        return Ready(
            msgspec.structs.replace(form, device=str(self.device), base=self.base),
            self.text,
            self.refused,
            windows,
            self.policy.smallest_cohort or 0,
        )

    def do(self, do: Do) -> Done | Declined:
        """Carry out a task, if the policy allows it.  Raises AtollError."""
        import torch

        from atoll.codec import pieces, read
        from atoll.contract import Answer, Job, Order, Work
        from atoll.engines.sequential import Sequential
        from atoll.network.backing import backed
        from atoll.network.references import keep, opened
        from atoll.tensors import Record, to_device

        task = do.task
        problem = self.policy.check_task(task, self.plan, datetime.now())
        if problem is None and self.allowance is not None:
            problem = self.allowance.refuses(task)
        if problem is not None:
            return Declined(problem)
        size = Path(do.shared).stat().st_size
        with backed(self.place, size):
            since = None if do.since is None else Path(do.since)
            shared = opened(self.down, read(Path(do.shared)), since)
            if do.keep is not None:
                keep(self.method, shared, Path(do.keep), since)
            own = Record() if do.own is None else read(Path(do.own))
            memory = None if do.memory is None else read(Path(do.memory)) or None
        received = shared.replace(**own) if own else shared
        work = Work(received, program=task.program)
        channel = self._channel(task, do.noise)
        job = Job(
            self.method, work, [self.number], task.round, self.plan.seed, cohort=task.cohort, channel=channel
        )
        if isinstance(self.client, Sequential) and self.padding is not None:
            with backed(self.place, size):  # it takes a step three times
                self.client.padded = not self.padding.seen(job, _One(memory))
        order = Order(
            self.number, task.round, self.plan.seed, task.program, received, task.epochs, task.limit
        )
        client = self.judging if task.program.partition(" ")[0] == "evaluate" else self.client
        begun = time.monotonic()
        answer, after = client.answer(order, job.program, memory, None, task.cohort)
        answer = Answer.of_record(to_device(answer.to_record(), torch.device("cpu")))
        seconds = time.monotonic() - begun
        answer = answer._replace(reply=self.policy.told(answer.reply))
        if channel is not None and channel.hides:
            answer = answer._replace(reply=_withheld(answer.reply, Path(do.vector)))
        if self.allowance is not None:
            self.allowance.charge(task, private=do.noise is not None)
        kept = pieces(after or memory or Record())  # who remembers nothing new keeps what it had
        replaced(Path(do.after), *kept)  # first: an answer that is there is sent, whatever happened after it
        return Done(seconds, _kept(Path(do.answer), *pieces(answer.to_record())))

    def model(
        self,
        task: Task,
        program: str,
        shared: Path,
        own: Path | None,
        memory: Path | None,
        reference: Path | None = None,
    ) -> Any:
        """The module that this client predicts with: what `program` judges, of a task's bodies.  Raises ConfigError."""
        from atoll import seeds
        from atoll.codec import read
        from atoll.contract import Channel, Job, Order, Work
        from atoll.network.references import opened
        from atoll.rounds.personal import model_of

        received = opened(self.down, read(shared), reference, followed=True)
        if own is not None:
            received = received.replace(**read(own))
        held = None if memory is None else read(memory) or None
        channel = None if self.chain is None else Channel()
        seed = self.plan.seed
        job = Job(
            self.method, Work(received, program=program), [self.number], task.round, seed, channel=channel
        )
        order = Order(self.number, task.round, seed, program, received, task.epochs, task.limit)
        made = self.judging.task if program == "evaluate" else self.task
        with seeds.scoped(seed, "personal", task.round):
            return model_of(job, order, made, self.data, held, self.judging.device)

    def _channel(self, task: Task, noise: bytes | None) -> Any:
        from atoll.channel import Setting
        from atoll.contract import Channel
        from atoll.privacy.source import Source

        if self.chain is None:
            return None
        if task.program.partition(" ")[0] != "train":
            return Channel()  # memories keep their two parts
        chain = self.chain.settled(Setting(**(task.setting or {})))
        return (chain if noise is None else chain.drawing(Source(noise))).packing()


def _kept(path: Path, *answer: Any) -> str:
    """Put an answer, in pieces, in place; its SHA-256, for which nobody waits longer than for the disk."""
    sha256 = hashlib.sha256()
    with ThreadPoolExecutor(1) as beside:
        writing = beside.submit(replaced, path, *answer)
        for piece in answer:
            sha256.update(piece)
        writing.result()
    return sha256.hexdigest()


def _withheld(reply: Any, path: Path) -> Any:
    """The reply without its update, which stays in a file, in whole numbers, until it is asked for under masks."""
    from atoll.channel.sums import packed
    from atoll.tensors import Record

    if float(reply.weight) > 0:
        replaced(path, packed(reply.values).astype("<i4", casting="equiv").tobytes())
    return reply._replace(values=Record())


class _One:
    """The memory of the one client."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def get(self, client: int) -> Any:
        return self.memory

    def put(self, client: int, memory: Any) -> None: ...


def _with(parent: int) -> None:
    """End when the node does, even in the middle of a step."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def serve(source: BinaryIO, sink: BinaryIO, work: _Work | None = None) -> _Work | None:
    """Frames in, frames out, until the stream closes; who has begun the work already goes on with it."""
    while (frame := receive(source)) is not None:
        try:
            if isinstance(frame, Begin):
                if frame.memory:
                    resource.setrlimit(resource.RLIMIT_DATA, (frame.memory, frame.memory))
                work = work or _Work(frame)
                send(sink, work.ready())
            elif isinstance(frame, Do) and work is not None:
                send(sink, work.do(frame))
        except Exception as error:
            send(sink, failed(error))
    return work


def main(reads: int, writes: int, parent: int) -> None:
    """A worker on two pipes."""
    _with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the node decides what it means
    with os.fdopen(reads, "rb") as source, os.fdopen(writes, "wb") as sink:
        serve(source, sink)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(*map(int, sys.argv[1:4]))
