"""A node: joins, is told what to do, has it done, answers; and begins again wherever it was cut off."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import hmac
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from atoll.errors import AtollError, ConfigError, RunError
from atoll.network.hand import Broken, Hand
from atoll.network.hours import Window, opens, windows
from atoll.network.line import Line, Over, Refused, Stale, Unjoined
from atoll.network.masking import Masking, Trusts, told
from atoll.network.shelf import Kept, Shelf
from atoll.network.signing import Signer
from atoll.network.telling import said
from atoll.network.wire import PUBLIC, DataForm, Failure, Joined, Plan, Task, pack
from atoll.network.worker import Begin, Declined, Do, Done, Failed, Ready

__all__ = ["Node", "Station"]

BEAT = 5.0
"""Seconds between signs of life while a task is under way."""


@dataclass(frozen=True)
class Station:
    """How a node is set.

    Args:
        url: where the coordinator is.
        name: the node's.
        source: its data (see `atoll.network.here`).
        place: its directory.
        context: for TLS; None without.
        admitted: code of its own that a plan may name.
        approve: is shown what would leave, and decides.
        policy: a file that says what it allows; None: whatever was approved.
        limit: seconds that a task may take.
        memory: bytes that a worker may use; 0: any.
        trusts: whose keys count in secure aggregation; by default all that the coordinator tells.
        certificate: its own (PEM), which names its key there; None without TLS.
        renewed: waits for the next certificate; with its context.
        keys: where that key is; by default its directory.
        repeatable: whether noise may follow from the run's seed, if the plan says so too: never private.
        silo: what trains here together ("ddp:2"), where it is more than one process.
        device: what its worker computes on; "auto": a GPU where there is one.
        start: a file with the numbers of the model that nobody trains or sends.
        tokenizer: a folder with the tokenizer that the run reads texts by.
        precision, accumulate, recompute: how its gradients are computed (`atoll.thrift`).
    """

    url: str
    name: str
    source: str
    place: Path
    context: ssl.SSLContext | None = None
    admitted: Mapping[str, str] = field(default_factory=dict)
    approve: Callable[[Plan, Ready], bool] = lambda plan, ready: True
    policy: str | None = None
    tell: Callable[[str], object] = print
    limit: float | None = None
    memory: int = 0
    trusts: Trusts = told
    certificate: str | None = None
    renewed: Callable[[], Awaitable[tuple[ssl.SSLContext, str]]] | None = None
    keys: Path | None = None
    repeatable: bool = False
    silo: str | None = None
    device: str = "auto"
    start: str | None = None
    tokenizer: str | None = None
    precision: str = "float32"
    accumulate: int = 1
    recompute: bool = False


class Node:
    """Takes part in one run until it is over, or it is cancelled.

    Raises ConfigError where the coordinator or the person at the node refuses, RunError where data cannot be read or
    another process is this node.
    """

    def __init__(self, station: Station) -> None:
        self.station = station
        self.rounds = 0
        self._certificate = station.certificate
        self._lock: Any = None
        self._windows: tuple[Window, ...] = ()
        self._last: tuple[str, Done] | None = None  # the task that was done last, and what the worker said

    async def run(self) -> None:
        """Join, work, leave."""
        station = self.station
        station.place.mkdir(parents=True, exist_ok=True)
        self.hold()
        self.signer = Signer(station.keys or station.place)
        async with self.line() as line:
            joined = await self._joined(line)
            self.shelf = self.shelved(station.place / joined.run)
            await self._published(line, joined)
            hand = self.hand(joined)
            renewing = asyncio.ensure_future(self._renewing(line, joined))
            try:
                ready = await self._admitted(joined, hand)
                self.masking = Masking(
                    station.name, joined.run, self.shelf, self.signer, station.trusts, ready.smallest
                )
                await self._announced(line, ready.form)
                if joined.plan.repeatable and station.repeatable:
                    text = "noise and rounding follow from the run's seed: what leaves here is NOT private"
                    station.tell(said("repeatable", text))
                text = f"joined as {station.name}, client {joined.number}; waiting for work"
                facts = {"node": station.name, "number": joined.number, "device": ready.form.device}
                station.tell(said("joined", text, run=joined.run, **facts))
                await self._work(line, joined, hand, ready.form)
            except Over:
                station.tell(said("over", "the run is over"))
                await line.leave()
            except asyncio.CancelledError:
                await asyncio.shield(line.leave())
                raise
            finally:
                renewing.cancel()
                hand.end()

    def line(self) -> Line:
        """On which it speaks with the coordinator."""
        station = self.station
        return Line(station.url, context=station.context, name=station.name, tell=station.tell)

    def shelved(self, place: Path) -> Shelf:
        """Where it keeps what belongs to the run."""
        return Shelf(place)

    def hand(self, joined: Joined) -> Hand:
        """What does its work."""
        return Hand(self.begin(joined), self.station.limit)

    def begin(self, joined: Joined) -> Begin:
        """What a worker is told first."""
        station = self.station
        return Begin(
            plan=joined.plan, source=station.source, number=joined.number, name=station.name,
            place=str(station.place), public=None if joined.plan.public is None else str(self.shelf.public),
            policy=station.policy, admitted=dict(station.admitted), memory=station.memory,
            silo=station.silo, device=station.device, start=station.start, tokenizer=station.tokenizer,
            precision=station.precision, accumulate=station.accumulate, recompute=station.recompute,
        )  # fmt: skip

    def hold(self) -> None:
        """Be the only process that is this node."""
        self._lock = (self.station.place / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunError(
                f"another process is this node ({self.station.place})",
                hint="end it first, or take another --place",
            ) from None

    async def _joined(self, line: Line) -> Joined:
        try:
            return await line.join(self.signer.public.hex(), self._certificate)
        except Refused as error:
            raise ConfigError(error.message, hint=error.hint) from None

    async def _published(self, line: Line, joined: Joined) -> None:
        """Get the public inputs, once.  Raises ConfigError for more than a node takes."""
        public = joined.plan.public
        if public is None:
            return
        if public.size > PUBLIC:
            raise ConfigError(f"public inputs of {public.size:,} bytes, and a node takes {PUBLIC:,} at most")
        path = self.shelf.public
        if self.shelf.noted("published") != public.sha256:
            path.unlink(missing_ok=True)
            await line.fetch(public, path)
            self.shelf.note("published", public.sha256)

    async def _announced(self, line: Line, form: DataForm) -> None:
        """Say what is here.  Raises ConfigError where the coordinator will not have it."""
        try:
            await line.announce(form)
        except Refused as error:
            raise ConfigError(error.message, hint=error.hint) from None

    async def _admitted(self, joined: Joined, hand: Hand) -> Ready:
        """Data that could be read, of a plan that may be followed.  Raises ConfigError."""
        station, plan = self.station, joined.plan
        ready = await hand.ready()
        if ready.refused:
            raise ConfigError(
                f"this node's policy does not allow what {station.url} asks for:\n  "
                + "\n  ".join(ready.refused),
                hint="talk to whoever runs the coordinator, or change the policy",
            )
        self._windows = windows(ready.hours)
        sign = hashlib.sha256(pack(plan)).hexdigest()
        if self.shelf.noted("approved") != sign:
            if not station.approve(plan, ready):
                raise ConfigError("not approved; nothing has left this machine")
            self.shelf.note("approved", sign)
        return ready

    # --- work -------------------------------------------------------------------------------------------------

    async def _work(self, line: Line, joined: Joined, hand: Hand, form: DataForm) -> None:
        while True:
            try:
                if (closed := opens(self._windows, datetime.now())) > 0:
                    with contextlib.suppress(OSError, TimeoutError, RunError):
                        await _soon(line.beat(None))
                    await asyncio.sleep(min(closed, 20.0))
                    continue
                task = await line.task()
                if task is not None:
                    await self._task(line, joined, hand, task)
            except Stale:
                continue
            except Unjoined:
                await self._again(line, joined)
                await self._announced(line, form)

    async def _again(self, line: Line, joined: Joined) -> None:
        """Join again in the same run.  Raises ConfigError where it is another."""
        again = await self._joined(line)
        if (again.run, again.number, again.plan) != (joined.run, joined.number, joined.plan):
            raise ConfigError(
                "the coordinator now runs something else", hint="join again, to see what"
            ) from None

    async def _renewing(self, line: Line, joined: Joined) -> None:
        """Show the next certificate on new connections, and tell the others, for it names the key for signatures."""
        with contextlib.suppress(
            AtollError
        ):  # it has ended, or the run has: whoever works hears of that, too
            while self.station.renewed is not None:
                line.context, self._certificate = await self.station.renewed()
                await self._again(line, joined)

    async def _task(self, line: Line, joined: Joined, hand: Hand, task: Task) -> None:
        """Do a task, unless its answer is there already, and answer it."""
        if task.kind == "secagg":
            await self._masked(line, task)
            return
        shelf = self.shelf
        task, path = shelf.able(task), shelf.answer(task.id)
        if not path.is_file():
            failure = await self._done(line, joined.plan, hand, task, path)
            if failure is not None:
                text = f"round {task.round}: {task.program} failed, {failure.reason}"
                facts = {"task": task.id, "program": task.program, "kind": failure.kind}
                self.station.tell(said("failed", text, round=task.round, **facts))
                await line.failed(task.id, failure)
                await asyncio.sleep(0.5)
                return
        try:
            last = self._last[1] if self._last is not None and self._last[0] == task.id else None
            found = await line.answer(task.id, path, None if last is None else last.sha256)
        except Refused as error:
            shelf.forget(task.id)
            text = f"round {task.round}: the answer was refused, {error.message}"
            self.station.tell(said("refused", text, round=task.round, task=task.id))
            await line.failed(task.id, Failure(kind="refused", reason=error.message))
            return
        except Stale:
            shelf.forget(task.id)
            text = f"round {task.round}: came too late with {task.program}"
            self.station.tell(said("late", text, round=task.round, task=task.id))
            raise
        shelf.forget(task.id)
        if found.refused is not None:
            text = f"round {task.round}: the answer was refused, {found.refused}"
            self.station.tell(said("refused", text, round=task.round, task=task.id))
        elif task.program == "train":
            self.rounds += 1
            shelf.over(task.round)
            text = f"round {task.round}: trained and sent {path.name} ({found.offset:,} bytes)"
            seconds = None if last is None else last.seconds  # it was done before this process began
            more: dict[str, Any] = {"bytes": found.offset, "seconds": seconds}
            self.station.tell(said("trained", text, round=task.round, task=task.id, **more))
        if found.refused is None:
            self._keep(joined, task)
        shelf.tidy(task.memory if task.program == "train" else None, [each.sha256 for each in task.bodies])

    def _keep(self, joined: Joined, task: Task) -> None:
        """Keep what `atoll predict` needs of a task that was answered."""
        kept = Kept(
            task=task, plan=joined.plan, number=joined.number, name=self.station.name, source=self.station.source,
            start=self.station.start, tokenizer=self.station.tokenizer, precision=self.station.precision,
            accumulate=self.station.accumulate, recompute=self.station.recompute,
        )  # fmt: skip
        if kept.rank >= 0:
            self.shelf.keep(kept)

    async def _masked(self, line: Line, task: Task) -> None:
        """Take part in a stage of secure aggregation; all that is written down is what must not be done twice."""
        bodies = []
        for blob in (task.shared, task.own):
            if blob is not None:
                path = self.shelf.body(blob.sha256)
                await line.fetch(blob, path)
                bodies.append(path.read_bytes())
                path.unlink()
        found = await asyncio.to_thread(self.masking.answer, task, *bodies)
        if isinstance(found, Failure):
            self.station.tell(f"round {task.round}: no part in the secure sum, {found.reason}")
            await line.failed(task.id, found)
        else:
            await line.answer(task.id, found)

    async def _done(self, line: Line, plan: Plan, hand: Hand, task: Task, path: Path) -> Failure | None:
        """Have a task's answer written; why it could not be."""
        shelf = self.shelf
        for blob in (task.shared, task.own):
            if blob is not None:
                await line.fetch(blob, shelf.body(blob.sha256))
        memory = None if task.memory is None else shelf.memory(task.memory)
        if memory is not None and not memory.is_file():
            return Failure(kind="refused", reason=f"the memory of task {task.memory} is not here any more")
        do = Do(
            task,
            str(shelf.body(task.shared.sha256)),
            None if task.own is None else str(shelf.body(task.own.sha256)),
            None if memory is None else str(memory),
            str(path),
            str(shelf.memory(task.id)),
            str(shelf.vector(task.id, task.model)),
            self._noise(plan, task),
            None if task.since is None else str(shelf.reference(task.since)),
            None if task.keep is None else str(shelf.reference(task.keep)),
        )
        working = asyncio.ensure_future(hand.do(do))
        try:
            while not (await asyncio.wait([working], timeout=BEAT))[0]:
                with contextlib.suppress(OSError, TimeoutError, AtollError):
                    if not (await _soon(line.beat(task.id))).wanted:
                        raise Stale("the task is wanted no more")
        except BaseException:
            working.cancel()
            hand.end()
            with contextlib.suppress(BaseException):
                await working
            raise
        try:
            found = working.result()
        except Broken as error:
            return Failure(kind=error.kind, reason=error.message)  # type: ignore[arg-type]
        except RunError as error:
            return Failure(kind="raised", reason=error.message)
        if isinstance(found, Done):
            self._last = task.id, found
        if isinstance(found, Declined):
            return Failure(kind="refused", reason=found.reason)
        return Failure(kind="raised", reason=found.message) if isinstance(found, Failed) else None

    def _noise(self, plan: Plan, task: Task) -> bytes | None:
        """The key of what is drawn for a task: the node's secret decides, and all that is asked.

        A task done again gives the same bytes, and one that differs in anything has draws of its own: who asks for two
        updates under one noise gets them under two.
        """
        if plan.repeatable and self.station.repeatable:
            return None
        asked = msgspec.structs.replace(task, seconds=None)
        return hmac.digest(self.shelf.secret(), pack(plan) + pack(asked), "sha256")


async def _soon(action: Any) -> Any:
    async with asyncio.timeout(BEAT):
        return await action
