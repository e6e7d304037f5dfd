"""Answers that nodes send: resumable, idempotent, looked at as a whole before they count."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from atoll.errors import MissingExtraError
from atoll.network.blobs import mapped
from atoll.network.coordinator import Coordinator
from atoll.network.desk import Posted, key_of
from atoll.network.incoming import Incoming
from atoll.network.responses import refusal, told
from atoll.network.wire import Answered, Verdict, pack

try:
    from aiohttp import web
except ImportError:
    raise MissingExtraError("aiohttp", "network", "a coordinator") from None

__all__ = ["SILENT", "Uploads"]

SILENT = 30.0
"""Seconds in which a message must have come, or the next piece of a body."""

_ROOM = 1 << 30
"""Bytes of answers that may be on their way at a time."""

_WIDE = 1 << 26
"""Bytes of an answer from which only one at a time is looked at."""


class Uploads:
    """The requests about an answer.

    Args:
        node: tells the number of the node that makes a request, or refuses it.
        served: hears of a node whose answer is no longer on its way.
    """

    def __init__(
        self, coordinator: Coordinator, node: Callable[[web.Request], int], served: Callable[[int], object]
    ) -> None:
        self.coordinator, self.node, self.served = coordinator, node, served
        self.desk, self.blobs = coordinator.desk, coordinator.blobs
        self._arriving: dict[int, tuple[int, web.Request]] = {}  # client -> bytes, and who sends them
        self._wide = asyncio.Lock()

    async def open(self, request: web.Request, number: int) -> Posted | Answered:
        """The open task that a request names, or what became of it; refuses others'."""
        task_id = request.match_info["id"]
        posted = self.desk.open(number, task_id)
        if posted is not None:
            return posted
        fact = None
        if task_id.count("-") > 1:
            fact = await asyncio.to_thread(self.coordinator.journal.get, key_of(task_id, number))
        if fact is not None:
            return Answered(offset=fact["size"], done=True, refused=fact["refused"])
        current = self.desk.task(number)
        raise web.HTTPConflict(
            text=pack(Verdict(problem="stale", round=0 if current is None else current.round)).decode(),
            content_type="application/json",
        )

    async def answered(self, request: web.Request) -> web.Response:
        number = self.node(request)
        found = await self.open(request, number)
        if isinstance(found, Answered):
            return told(found)
        part = self._part(number, found)
        return told(Answered(offset=part.stat().st_size if part.is_file() else 0))

    async def answer(self, request: web.Request) -> web.Response:
        number = self.node(request)
        await self._alone(number)
        found = await self.open(request, number)
        if isinstance(found, Answered):
            return told(found)
        offset, size, sha256 = _upload(request)
        if size > found.task.most:
            raise refusal(413, "size", f"the answer has {size} bytes, and may have {found.task.most}")
        if self._arriving and sum(each for each, _ in self._arriving.values()) + size > _ROOM:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "1"})
        self._arriving[number] = size, request
        try:
            return await self._received(request, number, found, offset, size, sha256)
        finally:
            del self._arriving[number]
            self.served(number)

    async def _alone(self, number: int) -> None:
        """End the upload that a node has begun before: its line is dead, or the node has thought better of it."""
        if number not in self._arriving:
            return
        _, other = self._arriving[number]
        if other.transport is not None:
            other.transport.abort()
        for _ in range(500):
            if number not in self._arriving:
                return
            await asyncio.sleep(0.01)
        raise refusal(429, "busy", "another part of this answer is being looked at")

    async def _received(
        self, request: web.Request, number: int, posted: Posted, offset: int, size: int, sha256: str
    ) -> web.Response:
        part = self._part(number, posted)
        there = part.stat().st_size if part.is_file() else 0
        if there > size:  # it was another answer's
            part.unlink()
            there = 0
        if offset != there:
            return told(Answered(offset=there), status=409)
        incoming, begun = Incoming(part), time.perf_counter()
        try:
            while piece := await self._piece(request):
                if incoming.size + len(piece) > size:
                    part.unlink()
                    raise refusal(413, "size", f"more than the {size} bytes that were announced")
                incoming.take(piece)
                self.desk.seen(number)
            if incoming.size == size:
                if posted.task.program == "train":
                    seconds, before = time.perf_counter() - begun, begun - (posted.taken or begun)
                    await asyncio.to_thread(self.desk.speeds.measured, number, size - offset, seconds, before)
                self.served(number)  # what is to be done with it keeps nobody from being told
                await incoming.caught_up()
                async with self._wide if size > _WIDE else contextlib.nullcontext():
                    refused = await asyncio.to_thread(self._settle, incoming, posted, sha256)
                return told(Answered(offset=size, done=True, refused=refused))
        finally:
            await incoming.close()
        return told(Answered(offset=incoming.size), status=202)

    async def _piece(self, request: web.Request) -> bytes:
        """What comes next; nothing at the end.  Refuses whoever sends nothing for too long."""
        try:
            async with asyncio.timeout(SILENT):
                return await request.content.readany()
        except TimeoutError:
            raise refusal(408, "slow", f"nothing came for {SILENT:g} s", "go on from the offset") from None

    def _settle(self, incoming: Incoming, posted: Posted, sha256: str) -> str | None:
        """A whole answer: check it, keep it, write it down; why it is refused, or None."""
        part, size = incoming.path, incoming.size
        if incoming.ended() != sha256:
            part.unlink()
            raise refusal(422, "hash", "the bytes have another hash than was announced", "send it again")
        refused = posted.check(mapped(part))
        if refused is not None:
            part.unlink()
            self.desk.accept(posted, None, size, refused, came=sha256)
            return refused
        incoming.sync()
        with self.desk.settling(sha256):
            self.blobs.keep(part, sha256)
            self.desk.accept(posted, sha256, size, None)
        return None

    def _part(self, number: int, posted: Posted) -> Path:
        return self.blobs.part(f"{number}-{posted.task.id}")


def _upload(request: web.Request) -> tuple[int, int, str]:
    query = request.query
    try:
        offset, size, sha256 = int(query["offset"]), int(query["size"]), query["sha256"]
        if (
            offset < 0
            or size < 1
            or offset > size
            or len(sha256) != 64
            or not set(sha256) <= set("0123456789abcdef")
        ):
            raise ValueError
    except (KeyError, ValueError):
        raise refusal(400, "upload", "offset, size and sha256 say what comes") from None
    return offset, size, sha256
