"""The server's part: what the desk asks of nodes goes out as Flower's messages, and their replies come back to it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from atoll.errors import AtollError, CodecError, ConfigError
from atoll.flower.envelope import Bodies, Facts, body, opened, sealed
from atoll.network.coordinator import Coordinator
from atoll.network.desk import Posted
from atoll.network.wire import NAME, DataForm, Failure, Joined, Joining, pack, unpack
from atoll.words import printable

__all__ = ["Carrier"]

_PACE = 0.1
"""Seconds between looks for replies. Flower's SuperNodes look for messages every three."""

_LISTED = 1.0
"""Seconds between looks at who is there."""

_SHOWN = 5000
"""Characters of a line that the log shows."""

_CRASHED, _GONE = 8, (3, 4, 5)
"""Flower's codes of errors: an app that crashed; a message or a node that is no longer there."""


@dataclass
class _Guest:
    """A SuperNode: what it is called once it has said so, its place among the clients, and what it was sent last."""

    id: int
    name: str | None = None
    joined: Joined | None = None
    ready: bool = False
    refused: bool = False
    message: str | None = None
    task: str | None = None


class Carrier:
    """Carries tasks and answers between a coordinator and SuperNodes.

    Args:
        grid: Flower's.
        tell: hears of nodes that come, go or cannot take part.

    A SuperNode that starts again has another number in Flower, and is known by its name: what it was asked before is
    asked again, and its own directory knows how far it was.
    """

    def __init__(self, coordinator: Coordinator, grid: Any, tell: Callable[[str], object] = print) -> None:
        self.coordinator, self.grid = coordinator, grid
        self._tell = tell
        self.desk, self.blobs = coordinator.desk, coordinator.blobs
        self._guests: dict[int, _Guest] = {}
        self._parted: set[int] = set()  # SuperNodes whose names others have now
        self._arrays: dict[str, Any] = {}
        self._listed = 0.0

    def tell(self, text: str) -> None:
        """Say something, much of which SuperNodes may have said."""
        self._tell(printable(text[:_SHOWN]))

    async def carry(self) -> None:
        """Until the run has ended.  Raises ConfigError where none of the nodes that it needs can take part."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def told(client: int) -> None:
            loop.call_soon_threadsafe(news.set)

        self.desk.told = told
        while not self.coordinator.ended.is_set():
            news.clear()
            await asyncio.to_thread(self._turn)
            waits = [asyncio.ensure_future(each.wait()) for each in (news, self.coordinator.ended)]
            await asyncio.wait(waits, timeout=_PACE, return_when=asyncio.FIRST_COMPLETED)
            for each in waits:
                each.cancel()

    def _turn(self) -> None:
        """Look who is there, send what is due, take what has come."""
        if time.monotonic() - self._listed > _LISTED:
            self._list()
        self._send()
        waiting = [guest.message for guest in self._guests.values() if guest.message is not None]
        for reply in self.grid.pull_messages(waiting) if waiting else ():
            sender = reply.metadata.reply_to_message_id
            guest = next((each for each in self._guests.values() if each.message == sender), None)
            if guest is not None:
                guest.message = None
                self._received(guest, reply)

    def _list(self) -> None:
        there = {*self.grid.get_node_ids()} - self._parted
        for gone in self._guests.keys() - there:
            guest = self._guests.pop(gone)
            if guest.name is not None:
                self.tell(f"{guest.name} is not there any more")
        for new in there - self._guests.keys():
            self._guests[new] = _Guest(new)
        for guest in self._guests.values():
            if guest.ready and guest.joined is not None:
                self.desk.seen(guest.joined.number)
        self._listed = time.monotonic()

    # --- out --------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        from flwr.app import Message

        due = [(guest, found) for guest in self._guests.values() if (found := self._due(guest)) is not None]
        messages = [Message(content, guest.id, kind, group_id=group) for guest, (content, kind, group) in due]
        sent = list(self.grid.push_messages(messages)) if messages else []
        for (guest, _), message in zip(due, sent, strict=False):
            guest.message = message or None
        for guest, _ in due[len(sent) :]:  # too large for the SuperLink
            raise ConfigError(
                f"the SuperLink does not take the messages to {guest.name or guest.id}, which are too large",
                hint="fewer clients a round, or a smaller model",
            )

    def _due(self, guest: _Guest) -> tuple[Any, str, str] | None:
        """What a SuperNode is to be told now: content, Flower's kind of message, group."""
        if guest.refused:
            return None
        if guest.joined is None or not guest.ready:
            if guest.message is not None:
                return None
            if guest.joined is None:
                return sealed({"hello": self.coordinator.run}), "query", ""
            public = guest.joined.plan.public
            bodies = {} if public is None else {"public": self._array(public.sha256)}
            return sealed({"joined": pack(guest.joined)}, bodies), "query", ""
        task = self.desk.task(guest.joined.number)
        if task is None or (task.id == guest.task and guest.message is not None):
            return None
        guest.task = task.id
        facts = {"joined": pack(guest.joined), "task": pack(task)}
        bodies = {"shared": self._array(task.shared.sha256)}
        if task.own is not None:
            bodies["own"] = self._array(task.own.sha256)
        return sealed(facts, bodies), "train" if task.program == "train" else "evaluate", str(task.round)

    def _array(self, sha256: str) -> Any:
        """A body to be sent; that of all clients is made once."""
        if sha256 not in self._arrays:
            while len(self._arrays) > 1:
                self._arrays.pop(next(iter(self._arrays)))
            self._arrays[sha256] = body(self.blobs.path(sha256).read_bytes())
        return self._arrays[sha256]

    # --- in ---------------------------------------------------------------------------------------------------

    def _received(self, guest: _Guest, reply: Any) -> None:
        if reply.has_error():
            self._broken(guest, reply.error.code, reply.error.reason)
            return
        try:
            facts, bodies = opened(reply.content)
            self._said(guest, facts, bodies)
        except (CodecError, ConfigError, AtollError) as error:
            self._refuse(guest, error.message, error.hint)

    def _broken(self, guest: _Guest, code: int, reason: str) -> None:
        """Flower has no answer: the node is gone, which is no failure of its own, or its app failed."""
        if code in _GONE:
            self._guests.pop(guest.id, None)
        elif guest.ready:
            self._failed(
                guest, Failure(kind="exited" if code == _CRASHED else "raised", reason=reason[:4000])
            )
        else:
            self._refuse(guest, reason, "look at the SuperNode's log")

    def _said(self, guest: _Guest, facts: Facts, bodies: Bodies) -> None:
        if "refused" in facts:
            hint = facts.get("hint")
            self._refuse(guest, str(facts["refused"]), None if hint is None else str(hint))
        elif guest.joined is None:
            self._join(guest, str(facts.get("name")), unpack(_bytes(facts, "joining"), Joining))
        elif not guest.ready:
            assert guest.name is not None
            self.coordinator.welcome(guest.name, unpack(_bytes(facts, "form"), DataForm))
            guest.ready = True
            self.tell(f"{guest.name} is there, client {guest.joined.number}")
        elif "failure" in facts:
            self._failed(guest, unpack(_bytes(facts, "failure"), Failure))
        elif "answer" not in bodies:
            self._failed(guest, Failure(kind="raised", reason="there is no answer in its reply"))
        elif (posted := self._posted(guest, str(facts.get("task")))) is not None:
            self._settle(posted, bodies["answer"])

    def _join(self, guest: _Guest, name: str, joining: Joining) -> None:
        if not NAME.fullmatch(name):
            raise CodecError(f"{name!r} is no name of a node", hint="small letters, digits and -")
        joined = self.coordinator.join(name, joining)
        for other in [each for each in self._guests.values() if each.name == name]:
            self._parted.add(other.id)
            del self._guests[other.id]
        guest.name, guest.joined = name, joined

    def _posted(self, guest: _Guest, task: str) -> Posted | None:
        assert guest.joined is not None
        return self.desk.open(guest.joined.number, task)

    def _failed(self, guest: _Guest, failure: Failure) -> None:
        posted = None if guest.task is None else self._posted(guest, guest.task)
        if posted is not None:
            self.tell(f"{guest.name}: {posted.task.program} failed, {failure.reason}")
            self.desk.fail(posted, failure)

    def _settle(self, posted: Posted, blob: bytes) -> None:
        """A whole answer: look at it, keep it, write it down."""
        sha256, size = hashlib.sha256(blob).hexdigest(), len(blob)
        if size > posted.task.most:
            refused: str | None = f"the answer has {size} bytes, and may have {posted.task.most}"
        else:
            refused = posted.check(bytearray(blob))
        if refused is not None:
            self.desk.accept(posted, None, size, refused, came=sha256)
            return
        with self.desk.settling(sha256):
            self.blobs.put(blob)
            self.desk.accept(posted, sha256, size, None)

    def _refuse(self, guest: _Guest, message: str, hint: str | None) -> None:
        """A node cannot take part, or not in this task."""
        if guest.ready:
            self._failed(guest, Failure(kind="raised", reason=message[:4000]))
            return
        guest.refused = True
        name = guest.name or f"SuperNode {guest.id}"
        self.tell(f"{name} cannot take part: {message}" + ("" if hint is None else f"\n  hint: {hint}"))
        refused = [each for each in self._guests.values() if each.refused]
        if len(refused) >= self.coordinator.office.least and len(refused) == len(self._guests):
            raise ConfigError(printable(f"no SuperNode can take part; {name}: {message}"[:_SHOWN]), hint=hint)


def _bytes(facts: Facts, key: str) -> bytes:
    found = facts.get(key)
    if not isinstance(found, bytes):
        raise CodecError(
            f"there is no {key!r} in the reply", hint="both sides must run the same release of atoll"
        )
    return found
