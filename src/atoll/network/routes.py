"""What nodes may ask of a coordinator over HTTP: `docs/wire.md`, as routes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atoll.errors import AtollError, MissingExtraError, RunError
from atoll.network.blobs import mapped
from atoll.network.coordinator import CROWDED, SOFTWARE, Coordinator
from atoll.network.desk import Posted, key_of
from atoll.network.lines import Lines
from atoll.network.room import crowded
from atoll.network.tls import Caller
from atoll.network.wire import (
    LIMIT,
    NAME,
    VERSIONS,
    Answered,
    Beat,
    Beaten,
    DataForm,
    Failure,
    Hello,
    Joining,
    Message,
    Problem,
    Verdict,
    pack,
    unpack,
)
from atoll.network.witness import NODE, Witness

try:
    from aiohttp import web
except ImportError:
    raise MissingExtraError("aiohttp", "network", "a coordinator") from None

__all__ = ["Caller", "Routes", "plainly"]

WAIT = 25.0
"""Seconds for which a node that asks for a task is kept waiting at most."""

SILENT = 30.0
"""Seconds in which a message must have come, or the next piece of a body."""

_HEARD = 2.0
"""Seconds after which a node that was told of the run's end is supposed to have heard."""

_ROOM = 1 << 30
"""Bytes of answers that may be on their way at a time."""

_WIDE = 1 << 26
"""Bytes of an answer from which only one at a time is looked at."""

_SEND = 1 << 18
"""Bytes of a body that are read at a time when it is sent."""

Identify = Callable[[web.Request], Caller]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def plainly(request: web.Request) -> Caller:
    """Without TLS, on this machine alone: whoever calls is who it says it is."""
    name = request.headers.get("Atoll-Name")
    return Caller(name, request.headers.get("Atoll-Role", "node") if name else None)


class Routes:
    """The coordinator's side of the wire.

    Args:
        identify: tells who makes a request.
    """

    def __init__(self, coordinator: Coordinator, identify: Identify) -> None:
        self.coordinator, self.identify = coordinator, identify
        self.desk, self.blobs = coordinator.desk, coordinator.blobs
        self.witness = Witness(coordinator.notebook)
        self._news: dict[int, asyncio.Event] = {}
        self._arriving: dict[int, tuple[int, web.Request]] = {}  # client -> bytes, and who sends them
        self._loop = asyncio.get_running_loop()
        self._wide = asyncio.Lock()
        self.desk.told = self._told
        self.lines: Lines | None = None

    def application(self) -> web.Application:
        """All routes."""
        site = web.Application(middlewares=[self._guard], client_max_size=LIMIT)
        self.witness.install(site)
        site.add_routes(
            [
                web.get("/healthz", self.health),
                web.get("/v1/hello", self.hello),
                web.post("/v1/join", self.join),
                web.post("/v1/data", self.data),
                web.get("/v1/task", self.task),
                web.get("/v1/blob/{sha256:[0-9a-f]{64}}", self.blob),
                web.get("/v1/task/{id:[0-9a-z-]{1,60}}/answer", self.answered),
                web.put("/v1/task/{id:[0-9a-z-]{1,60}}/answer", self.answer),
                web.post("/v1/task/{id:[0-9a-z-]{1,60}}/failure", self.failure),
                web.post("/v1/beat", self.beat),
                web.post("/v1/leave", self.leave),
                web.get("/v1/status", self.status),
            ]
        )
        return site

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors as problems, in one form; messages are read before anybody looks at them."""
        if self.lines is None:
            return await self._answered(request, handler)
        self.lines.begin(request.protocol)
        try:
            return await self._answered(request, handler)
        finally:
            self.lines.end(request.protocol)

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.method == "POST":
                try:
                    async with asyncio.timeout(SILENT):
                        await request.read()
                except TimeoutError:
                    raise _refusal(408, "slow", f"the message did not come in {SILENT:g} s") from None
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400 or error.content_type == "application/json":
                raise
            found = _problem(error.status, _WORDS.get(error.status, "refused"), error.reason)
            found.headers.update({key: error.headers[key] for key in _KEPT if key in error.headers})
            return found
        except (ConnectionError, web.RequestPayloadError):
            return _problem(400, "cut", "the request broke off")
        except (AtollError, OSError) as error:
            if crowded(error):
                self.desk.state = CROWDED
                return _problem(507, "room", "the coordinator has no room for it now", "try again later")
            if isinstance(error, OSError):
                raise
            status = 503 if isinstance(error, RunError) else 400  # the run's fault, or the caller's
            return _problem(status, "refused", error.message, error.hint)

    # --- who calls --------------------------------------------------------------------------------------------

    def _node(self, request: web.Request) -> tuple[str, int]:
        """The name and number of the node that calls, in its present session."""
        caller = self.caller(request, "node")
        assert caller.name is not None
        number = self.coordinator.number(caller.name)
        if number is None:
            raise _refusal(409, "unjoined", f"{caller.name} has not joined")
        session = self.coordinator.sessions.get(number)
        if session is None:
            raise _refusal(409, "unjoined", f"{caller.name} must join again", "the coordinator was restarted")
        if session != request.headers.get("Atoll-Session", ""):
            raise _refusal(
                409,
                "session",
                f"another process has joined as {caller.name} since",
                "each node is one process",
            )
        self.desk.seen(number)
        return caller.name, number

    def caller(self, request: web.Request, *roles: str) -> Caller:
        """Who makes a request; refuses those of other roles."""
        caller = self.identify(request)
        if caller.name is None or caller.role is None:
            raise _refusal(401, "unknown", "there is no client certificate", "join with an invitation first")
        request[NODE] = caller.name
        if caller.role not in roles:
            raise _refusal(403, "forbidden", f"this is not for the role {caller.role}")
        return caller

    # --- joining ----------------------------------------------------------------------------------------------

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def hello(self, request: web.Request) -> web.Response:
        caller = self.identify(request)
        return _json(
            Hello(
                protocols=VERSIONS,
                software=SOFTWARE,
                run=self.coordinator.run,
                name=caller.name,
                role=caller.role,
            )
        )

    async def join(self, request: web.Request) -> web.Response:
        caller = self.caller(request, "node")
        joining = unpack(await request.read(), Joining)
        if caller.name is None or not NAME.fullmatch(caller.name):
            raise _refusal(400, "name", f"{caller.name!r} is no name of a node")
        return _json(await asyncio.to_thread(self.coordinator.join, caller.name, joining))

    async def data(self, request: web.Request) -> web.Response:
        name, _ = self._node(request)
        form = unpack(await request.read(), DataForm)
        await asyncio.to_thread(self.coordinator.welcome, name, form)
        return web.Response(status=204)

    async def leave(self, request: web.Request) -> web.Response:
        name, number = self._node(request)
        self.desk.gone(number)
        await asyncio.to_thread(self.coordinator.notebook.note, "left", node=name)
        return web.Response(status=204)

    # --- tasks ------------------------------------------------------------------------------------------------

    def _told(self, client: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._tell, client)

    def wake(self) -> None:
        """Answer whoever waits for a task."""
        for news in self._news.values():
            news.set()

    def _tell(self, client: int) -> None:
        self._news.setdefault(client, asyncio.Event()).set()

    async def task(self, request: web.Request) -> web.Response:
        _, number = self._node(request)
        news = self._news.setdefault(number, asyncio.Event())
        news.clear()
        task = self.desk.task(number)
        if task is None and self.coordinator.result is None:
            try:
                wait = min(WAIT, self.desk.absent / 2, max(0.0, float(request.query.get("wait", "0"))))
            except ValueError:
                raise _refusal(400, "wait", "wait is a number of seconds") from None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), wait)
            self._node(request)  # it may have joined anew meanwhile
            task = self.desk.task(number)
        if self.coordinator.result is not None:
            # It says that it leaves once it has heard; who does not is not waited for much longer.
            self._loop.call_later(_HEARD, self.desk.parted, number)
            return web.Response(status=410)
        return web.Response(status=204) if task is None else _json(task)

    async def blob(self, request: web.Request) -> web.StreamResponse:
        self._node(request)
        path = self.blobs.path(request.match_info["sha256"])
        if not path.is_file():
            raise _refusal(404, "gone", "there is no such body any more")
        return await _sent(request, path)

    def _open(self, request: web.Request, number: int) -> Posted | Answered:
        """The open task that a request names, or what became of it; refuses others'."""
        task_id = request.match_info["id"]
        posted = self.desk.open(number, task_id)
        if posted is not None:
            return posted
        fact = self.coordinator.journal.get(key_of(task_id, number)) if task_id.count("-") > 1 else None
        if fact is not None:
            return Answered(offset=fact["size"], done=True, refused=fact["refused"])
        current = self.desk.task(number)
        raise web.HTTPConflict(
            text=pack(Verdict(problem="stale", round=0 if current is None else current.round)).decode(),
            content_type="application/json",
        )

    async def answered(self, request: web.Request) -> web.Response:
        _, number = self._node(request)
        found = self._open(request, number)
        if isinstance(found, Answered):
            return _json(found)
        part = self._part(number, found)
        return _json(Answered(offset=part.stat().st_size if part.is_file() else 0))

    async def answer(self, request: web.Request) -> web.Response:
        _, number = self._node(request)
        await self._alone(number)
        found = self._open(request, number)
        if isinstance(found, Answered):
            return _json(found)
        offset, size, sha256 = _upload(request)
        if size > found.task.most:
            raise _refusal(413, "size", f"the answer has {size} bytes, and may have {found.task.most}")
        if self._arriving and sum(each for each, _ in self._arriving.values()) + size > _ROOM:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "1"})
        self._arriving[number] = size, request
        try:
            return await self._received(request, number, found, offset, size, sha256)
        finally:
            del self._arriving[number]

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
        raise _refusal(429, "busy", "another part of this answer is being looked at")

    async def _received(
        self, request: web.Request, number: int, posted: Posted, offset: int, size: int, sha256: str
    ) -> web.Response:
        part = self._part(number, posted)
        there = part.stat().st_size if part.is_file() else 0
        if there > size:  # it was another answer's
            part.unlink()
            there = 0
        if offset != there:
            return _json(Answered(offset=there), status=409)
        with part.open("ab") as stream:
            while piece := await self._piece(request):
                if there + len(piece) > size:
                    part.unlink()
                    raise _refusal(413, "size", f"more than the {size} bytes that were announced")
                stream.write(piece)
                there += len(piece)
                self.desk.seen(number)
        if there < size:
            return _json(Answered(offset=there), status=202)
        async with self._wide if size > _WIDE else contextlib.nullcontext():
            refused = await asyncio.to_thread(self._settle, part, posted, size, sha256)
        return _json(Answered(offset=size, done=True, refused=refused))

    async def _piece(self, request: web.Request) -> bytes:
        """What comes next; nothing at the end.  Refuses whoever sends nothing for too long."""
        try:
            async with asyncio.timeout(SILENT):
                return await request.content.readany()
        except TimeoutError:
            raise _refusal(408, "slow", f"nothing came for {SILENT:g} s", "go on from the offset") from None

    def _settle(self, part: Path, posted: Posted, size: int, sha256: str) -> str | None:
        """A whole answer: check it, keep it, write it down; why it is refused, or None."""
        blob = mapped(part)
        if hashlib.sha256(blob).hexdigest() != sha256:
            part.unlink()
            raise _refusal(422, "hash", "the bytes have another hash than was announced", "send it again")
        refused = posted.check(blob)
        del blob
        if refused is not None:
            part.unlink()
            self.desk.accept(posted, None, size, refused, came=sha256)
            return refused
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        self.blobs.keep(part, sha256)
        self.desk.accept(posted, sha256, size, None)
        return None

    def _part(self, number: int, posted: Posted) -> Path:
        return self.blobs.part(f"{number}-{posted.task.id}")

    async def failure(self, request: web.Request) -> web.Response:
        _, number = self._node(request)
        failure = unpack(await request.read(), Failure)
        found = self._open(request, number)
        if isinstance(found, Answered):
            return _json(found)
        again = await asyncio.to_thread(self.desk.fail, found, failure)
        return _json(Answered(offset=0, done=not again))

    async def beat(self, request: web.Request) -> web.Response:
        _, number = self._node(request)
        beat = unpack(await request.read(), Beat)
        wanted = beat.task is not None and self.desk.open(number, beat.task) is not None
        current = self.desk.task(number)
        return _json(
            Beaten(wanted=wanted, round=current.round if current else 0, state=self.desk.state[:200])
        )

    # --- operations -------------------------------------------------------------------------------------------

    async def status(self, request: web.Request) -> web.Response:
        self.caller(request, "node", "operator", "auditor")
        now = time.monotonic()
        found = status(self.coordinator, now)
        return web.json_response(found | {"uploads": [asdict(each) for each in self.witness.uploads()]})


def status(coordinator: Coordinator, now: float) -> dict[str, Any]:
    """Where the run is, as plain values."""
    desk = coordinator.desk
    nodes = []
    for name, fact in sorted(coordinator.nodes().items(), key=lambda each: each[1]["number"]):
        number, form = int(fact["number"]), fact["form"]
        silent = desk.silence(number)
        nodes.append(
            {
                "name": name,
                "number": number,
                "there": desk.there(number),
                "silent": None if silent == float("inf") else round(silent, 1),
                "samples": form and form["train"],
                "task": (task := desk.task(number)) and task.id,
            }
        )
    return {
        "run": coordinator.run,
        "state": desk.state,
        "round": getattr(coordinator.federation, "number", 0),
        "rounds": coordinator.office.plan.rounds,
        "paused": "paused" in desk.state,
        "nodes": nodes,
        "answers": dict(coordinator.notebook.answers),
        "refusals": dict(coordinator.notebook.refusals),
        "epsilon": coordinator.notebook.epsilon,
    }


async def _sent(request: web.Request, path: Path) -> web.StreamResponse:
    """A body, or the range of it that was asked for.

    Under TLS aiohttp's own way goes through a thread for every 16 kB.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            start, stop, _ = request.http_range.indices(size)
        except ValueError:
            start, stop = size, size
        partial = "Range" in request.headers
        if partial and start >= stop:
            headers = {"Content-Range": f"bytes */{size}"}
            raise web.HTTPRequestRangeNotSatisfiable(headers=headers)
        response = web.StreamResponse(status=206 if partial else 200)
        response.content_type, response.content_length = "application/octet-stream", stop - start
        response.headers["Accept-Ranges"] = "bytes"
        if partial:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        await response.prepare(request)
        if request.method != "HEAD":
            stream.seek(start)
            while start < stop:
                piece = stream.read(min(_SEND, stop - start))
                await response.write(piece)
                start += len(piece)
        await response.write_eof()
    return response


_KEPT = ("Allow", "Retry-After", "Content-Range")
_WORDS = {404: "unknown", 405: "method", 411: "length", 413: "size", 416: "range", 503: "busy"}


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
        raise _refusal(400, "upload", "offset, size and sha256 say what comes") from None
    return offset, size, sha256


def _json(message: Message, status: int = 200) -> web.Response:
    return web.Response(body=pack(message), content_type="application/json", status=status)


def _problem(status: int, problem: str, message: str, hint: str | None = None) -> web.Response:
    return _json(Problem(problem=problem, message=message[:4000], hint=hint and hint[:4000]), status)


class _TooLarge(web.HTTPClientError):
    """aiohttp's own has a text of its own, and takes no body beside it."""

    status_code = 413


def _refusal(status: int, problem: str, message: str, hint: str | None = None) -> web.HTTPException:
    kinds: dict[int, type[web.HTTPException]] = {
        400: web.HTTPBadRequest, 401: web.HTTPUnauthorized, 403: web.HTTPForbidden, 404: web.HTTPNotFound,
        408: web.HTTPRequestTimeout, 409: web.HTTPConflict, 422: web.HTTPUnprocessableEntity,
        413: _TooLarge, 429: web.HTTPTooManyRequests,
    }  # fmt: skip
    text = pack(Problem(problem=problem, message=message[:4000], hint=hint)).decode()
    return kinds[status](text=text, content_type="application/json")
