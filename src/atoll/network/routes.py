"""What nodes may ask of a coordinator over HTTP: `docs/wire.md`, as routes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from atoll.errors import AtollError, MissingExtraError, RunError
from atoll.network.coordinator import CROWDED, SOFTWARE, Coordinator
from atoll.network.lines import Lines
from atoll.network.responses import body, problem, refusal, told
from atoll.network.room import crowded
from atoll.network.tls import Caller
from atoll.network.turns import Turns
from atoll.network.uploads import SILENT, Uploads
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

_TURN = 5.0
"""Seconds for which a node that could be told of a task is kept waiting until it is its turn, whatever it asked for."""

_HEARD = 2.0
"""Seconds after which a node that was told of the run's end is supposed to have heard."""

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
        self.turns = Turns()
        """Of nodes that are told of a task, from then until they have answered it."""
        self.uploads = Uploads(coordinator, lambda request: self._node(request)[1], self.turns.end)
        self._loop = asyncio.get_running_loop()
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
                web.get("/v1/task/{id:[0-9a-z-]{1,60}}/answer", self.uploads.answered),
                web.put("/v1/task/{id:[0-9a-z-]{1,60}}/answer", self.uploads.answer),
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
            if "Content-Encoding" in request.headers:
                raise refusal(415, "encoding", "bodies come as they are, not compressed")
            if request.method == "POST":
                try:
                    async with asyncio.timeout(SILENT):
                        await request.read()
                except TimeoutError:
                    raise refusal(408, "slow", f"the message did not come in {SILENT:g} s") from None
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400 or error.content_type == "application/json":
                raise
            found = problem(error.status, _WORDS.get(error.status, "refused"), error.reason)
            found.headers.update({key: error.headers[key] for key in _KEPT if key in error.headers})
            return found
        except (ConnectionError, web.RequestPayloadError):
            return problem(400, "cut", "the request broke off")
        except (AtollError, OSError) as error:
            if crowded(error):
                self.desk.state = CROWDED
                return problem(507, "room", "the coordinator has no room for it now", "try again later")
            if isinstance(error, OSError):
                raise
            status = 503 if isinstance(error, RunError) else 400  # the run's fault, or the caller's
            return problem(status, "refused", error.message, error.hint)

    # --- who calls --------------------------------------------------------------------------------------------

    def _node(self, request: web.Request) -> tuple[str, int]:
        """The name and number of the node that calls, in its present session."""
        caller = self.caller(request, "node")
        assert caller.name is not None
        number = self.coordinator.number(caller.name)
        if number is None:
            raise refusal(409, "unjoined", f"{caller.name} has not joined")
        session = self.coordinator.sessions.get(number)
        if session is None:
            raise refusal(409, "unjoined", f"{caller.name} must join again", "the coordinator was restarted")
        if session != request.headers.get("Atoll-Session", ""):
            raise refusal(
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
            raise refusal(401, "unknown", "there is no client certificate", "join with an invitation first")
        request[NODE] = caller.name
        if caller.role not in roles:
            raise refusal(403, "forbidden", f"this is not for the role {caller.role}")
        return caller

    # --- joining ----------------------------------------------------------------------------------------------

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def hello(self, request: web.Request) -> web.Response:
        caller = self.identify(request)
        return told(
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
            raise refusal(400, "name", f"{caller.name!r} is no name of a node")
        return told(await asyncio.to_thread(self.coordinator.join, caller.name, joining))

    async def data(self, request: web.Request) -> web.Response:
        name, _ = self._node(request)
        form = unpack(await request.read(), DataForm)
        await asyncio.to_thread(self.coordinator.welcome, name, form)
        return web.Response(status=204)

    async def leave(self, request: web.Request) -> web.Response:
        name, number = self._node(request)
        self.desk.gone(number)
        self.turns.end(number)
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
        try:
            wait = min(WAIT, self.desk.absent / 2, max(0.0, float(request.query.get("wait", "0"))))
        except ValueError:
            raise refusal(400, "wait", "wait is a number of seconds") from None
        until = self._loop.time() + wait
        if not self._anything(number):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), wait)
        if self._anything(number):
            if not await self.turns.take(number, max(until - self._loop.time(), _TURN)):
                return web.Response(status=204)
            if request.transport is None:  # nobody reads what would be said
                self.turns.end(number)
        self._node(request)  # it may have joined anew meanwhile
        task = self.desk.task(number)
        if self.coordinator.result is not None:
            # It says that it leaves once it has heard; who does not is not waited for much longer.
            self._loop.call_later(_HEARD, self.desk.parted, number)
            return web.Response(status=410)
        return web.Response(status=204) if task is None else told(task)

    def _anything(self, number: int) -> bool:
        """Whether there is something to tell a node."""
        return self.coordinator.result is not None or self.desk.wanted(number)

    async def blob(self, request: web.Request) -> web.StreamResponse:
        self._node(request)
        path = self.blobs.path(request.match_info["sha256"])
        if not path.is_file():
            raise refusal(404, "gone", "there is no such body any more")
        return await body(request, path)

    async def failure(self, request: web.Request) -> web.Response:
        _, number = self._node(request)
        failure = unpack(await request.read(), Failure)
        found = await self.uploads.open(request, number)
        if isinstance(found, Answered):
            return told(found)
        self.turns.end(number)
        again = await asyncio.to_thread(self.desk.fail, found, failure)
        return told(Answered(offset=0, done=not again))

    async def beat(self, request: web.Request) -> web.Response:
        _, number = self._node(request)
        beat = unpack(await request.read(), Beat)
        wanted = beat.task is not None and self.desk.open(number, beat.task) is not None
        current = self.desk.task(number)
        return told(Beaten(wanted=wanted, round=current.round if current else 0, state=self.desk.state[:200]))

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
                "device": fact.get("device"),
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


_KEPT = ("Allow", "Retry-After", "Content-Range")
_WORDS = {404: "unknown", 405: "method", 411: "length", 413: "size", 416: "range", 503: "busy"}
