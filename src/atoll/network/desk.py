"""Where the rounds and the nodes meet: tasks that are open, answers that have come. Threads on one side, requests on
the other; between them the journal, so that nothing that was accepted is ever lost.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from atoll.contract import Outcome
from atoll.errors import Terminated
from atoll.network.blobs import Blobs
from atoll.network.journal import Journal
from atoll.network.speeds import Speeds
from atoll.network.wire import Failure, Task

__all__ = ["Arrival", "Desk", "Posted", "key_of"]

Check = Callable[[Any], str | None]
"""Looks at the bytes of an answer, in a writable buffer: why it cannot be used, or None."""


def key_of(task_id: str, client: int) -> str:
    """Under which key what came of a client's task is written down."""
    round, call, attempt, *stage = task_id.split("-")
    return f"round/{round}/{'-'.join((call, attempt, *stage)) if stage else call}/{client}"


@dataclass(frozen=True)
class Arrival:
    """What came of a task: a body, or the reason why there is none. Times are of `time.perf_counter`."""

    sha256: str | None
    size: int = 0
    refused: str | None = None
    begun: float = 0.0
    ended: float = 0.0

    def to_fact(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "size": self.size, "refused": self.refused}


@dataclass
class Posted:
    """A task that one client is asked. `key` is under which its arrival is written down."""

    client: int
    task: Task
    key: str
    check: Check
    due: float | None = None
    """When it will no longer be waited for, by `time.monotonic`."""
    taken: float | None = None
    """When the node first took it, by `time.perf_counter`."""
    failures: list[str] = field(default_factory=list)


class Desk:
    """Open tasks, and signs of life. A client that has several does them one after the other.

    Args:
        journal: where arrivals are written down before they are acknowledged.
        blobs: where their bodies are.
        absent: seconds without a sign after which a node counts as absent.
        retry: how many failures of a node at a task are forgiven.
    """

    def __init__(self, journal: Journal, blobs: Blobs, *, absent: float = 60.0, retry: int = 2) -> None:
        self.journal, self.blobs, self.absent, self.retry = journal, blobs, absent, retry
        self.speeds = Speeds(journal)
        self.changed = threading.Condition()
        self.told: Callable[[int], None] = lambda client: None
        """Called, from any thread, when there is something new for a client."""
        self.note: Callable[..., object] = lambda event, **facts: None
        """Writes down what happened to clients; raises RunError where that cannot be."""
        self.state = "waiting for nodes"
        """What the run is doing, in words."""
        self.lasting: set[str] = set()
        """Bodies that stay as long as the run."""
        self._open: dict[
            int, dict[str, Posted]
        ] = {}  # by client and key, in the order in which they were asked
        self._arrived: dict[str, Arrival] = {}
        self._seen: dict[int, float] = {}
        self._settling: set[str] = set()
        self._tidying = threading.Lock()
        self._stopping = False

    # --- signs of life ----------------------------------------------------------------------------------------

    def seen(self, client: int) -> None:
        """A node gave a sign of life."""
        fresh = not self.there(client)
        self._seen[client] = time.monotonic()
        if fresh:
            self._wake()

    def gone(self, client: int) -> None:
        """A node said that it leaves."""
        self._seen.pop(client, None)
        self._wake()

    def there(self, client: int) -> bool:
        """Whether a node has given a sign of life of late."""
        at = self._seen.get(client)
        return at is not None and time.monotonic() - at < self.absent

    def parted(self, client: int) -> None:
        """A node has heard that the run is over."""
        self._seen.pop(client, None)

    @property
    def waiting(self) -> list[int]:
        """Clients who have given a sign of life of late."""
        return [client for client in list(self._seen) if self.there(client)]

    def silence(self, client: int) -> float:
        """Seconds since a node gave a sign; infinite where it never did."""
        at = self._seen.get(client)
        return float("inf") if at is None else time.monotonic() - at

    # --- the rounds' side -------------------------------------------------------------------------------------

    def post(self, posted: Sequence[Posted]) -> None:
        """Open tasks. What has arrived before, by the journal, is there at once."""
        fresh = []
        with self.changed:
            known = self.journal.known([each.key for each in posted])
            for each in posted:
                fact = known.get(each.key)
                if fact is not None and fact["sha256"] and not self.blobs.whole(fact["sha256"]):
                    self.journal.drop(each.key)  # the disk has lost it
                    fact = None
                if fact is not None:
                    now = time.perf_counter()
                    self._arrived[each.key] = Arrival(**fact, begun=now, ended=now)
                elif each.key not in self._arrived:
                    self._open.setdefault(each.client, {}).setdefault(each.key, each)
                    fresh.append(each.client)
        for client in fresh:
            self.told(client)

    def arrived(self, key: str) -> Arrival | None:
        """What came of a task."""
        return self._arrived.get(key)

    def open(self, client: int, task_id: str) -> Posted | None:
        """The task of that name, if the client is asked it now."""
        with self.changed:
            found = self._open.get(client, {}).values()
            return next((each for each in found if each.task.id == task_id), None)

    def withdraw(self, posted: Collection[Posted]) -> None:
        """What of these is still open is wanted no more."""
        with self.changed:
            for each in posted:
                self._open.get(each.client, {}).pop(each.key, None)
                self._arrived.pop(each.key, None)

    def opened(self, posted: Mapping[int, Posted]) -> float:
        """Write down that clients are asked, before they are; when that was, by `time.perf_counter`."""
        if posted:
            task = next(iter(posted.values())).task
            self.note("call-opened", task=task.id, program=task.program, asked=list(posted))
        return time.perf_counter()

    def closed(self, call: str, program: str, outcomes: Sequence[Outcome], since: float) -> None:
        """Write down whose answers counted."""
        counted = [each.client for each in outcomes if each.refused is None]
        seconds = round(time.perf_counter() - since, 3)
        self.note("call-closed", task=call, program=program, seconds=seconds, counted=counted)

    def tasks(self) -> int:
        """How many tasks are open."""
        with self.changed:
            return sum(len(found) for found in self._open.values())

    def wait(self, seconds: float | None = None) -> None:
        """Sleep until something has changed, or so long. To be called inside `with desk.changed`.

        Raises Terminated once the run is to stop.
        """
        if self._stopping:
            raise Terminated
        self.changed.wait(1.0 if seconds is None else min(max(seconds, 0.0), 1.0))
        if self._stopping:
            raise Terminated

    def tidy(self, first: int) -> None:
        """What was written down before a round is wanted no more, nor are the bodies that nothing names.

        Orders of earlier rounds may still be under way.
        """
        with self.changed:
            open = [each.task for found in self._open.values() for each in found.values()]
        first = min([first, *(task.round for task in open)])
        for number in {int(key.split("/")[1]) for key, _ in self.journal.walk("round/")}:
            if number < first:
                self.journal.drop(f"round/{number}/")
        facts = (fact for _, fact in self.journal.walk("round/"))
        named = {fact["sha256"] for fact in facts if isinstance(fact, dict) and fact.get("sha256")}
        sent = {body.sha256 for task in open for body in task.bodies}
        with self._tidying:
            self.blobs.only(named | sent | self.lasting | self._settling)

    @contextlib.contextmanager
    def settling(self, sha256: str) -> Iterator[None]:
        """Inside, a body that nothing names yet is not taken for one that nothing names any more."""
        with self._tidying:
            self._settling.add(sha256)
        try:
            yield
        finally:
            self._settling.discard(sha256)

    def stop(self) -> None:
        """The rounds are to end where they are."""
        self._stopping = True
        self._wake()

    # --- the nodes' side --------------------------------------------------------------------------------------

    def wanted(self, client: int) -> bool:
        """Whether a client is asked something now."""
        with self.changed:
            return bool(self._open.get(client))

    def task(self, client: int) -> Task | None:
        """What a client is asked now, with the seconds that are left for it."""
        with self.changed:
            posted = next(iter(self._open.get(client, {}).values()), None)
        if posted is None:
            return None
        if posted.taken is None:
            posted.taken = time.perf_counter()
        if posted.due is None:
            return posted.task
        return msgspec.structs.replace(posted.task, seconds=max(0.0, posted.due - time.monotonic()))

    def accept(
        self,
        posted: Posted,
        sha256: str | None,
        size: int,
        refused: str | None,
        *,
        came: str | None = None,
        kind: str = "content",
    ) -> None:
        """An answer is whole and was looked at: write that down. It counts from when this returns.

        `came` is the hash of a body that is refused, `kind` a word for why.

        Raises RunError where it cannot be written down.
        """
        now = time.perf_counter()
        arrival = Arrival(sha256, size, refused, posted.taken or now, now)
        facts = {"client": posted.client, "task": posted.task.id, "program": posted.task.program, "size": size,
                 "sha256": sha256 or came, "seconds": round(arrival.ended - arrival.begun, 3)}  # fmt: skip
        if refused is None:
            self.note("answer-accepted", **facts)
        else:
            self.note("answer-refused", **facts, reason=refused[:500], kind=kind)
        self.journal.put(posted.key, arrival.to_fact())
        with self.changed:
            if (
                self._open.get(posted.client, {}).pop(posted.key, None) is not None
            ):  # else nobody waits for it any more
                self._arrived[posted.key] = arrival
            self.changed.notify_all()

    def fail(self, posted: Posted, failure: Failure) -> bool:
        """A node could not do a task; whether it is asked once more."""
        posted.failures.append(f"{failure.kind}: {failure.reason}")
        if len(posted.failures) <= self.retry and failure.kind not in ("refused", "spent"):
            return True
        reason = f"the node could not: {posted.failures[-1]}"
        self.accept(posted, None, 0, reason, kind=failure.kind)
        return False

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()
