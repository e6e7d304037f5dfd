"""Sees every request of a coordinator: how many bytes, which uploads are under way, who was refused and why."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from atoll.errors import CodecError
from atoll.network.notebook import Notebook
from atoll.network.wire import Problem, pack, unpack

__all__ = ["NODE", "Upload", "Witness"]

NODE: Any = getattr(web, "RequestKey", lambda name, kind: name)("atoll.node", str)
"""Of a request: the name of who calls, once it is known."""

_TELLING = frozenset({400, 401, 403, 413, 422, 429, 507})
_QUIET, _CALLERS, _MOST = (
    60.0,
    4096,
    600,
)  # seconds, callers that are known, records of strangers in so many seconds


@dataclass(frozen=True)
class Upload:
    """An answer that is arriving."""

    node: str
    task: str
    received: int
    size: int


class Witness:
    """The outermost middleware. While `draining`, no new upload begins."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook, self.draining = notebook, False
        self._arriving: dict[int, web.Request] = {}
        self._said: OrderedDict[tuple[str, str, str], tuple[float, int]] = OrderedDict()
        self._since, self._written = 0.0, 0

    def install(self, site: web.Application) -> None:
        """See all requests of these routes."""
        site.middlewares.insert(0, self.seen)
        site.on_response_prepare.append(self._sends)

    def uploads(self) -> list[Upload]:
        """Answers of known nodes that are arriving now."""
        found = []
        for request in self._arriving.values():
            name = request.get(NODE)
            offset, size = request.query.get("offset", ""), request.query.get("size", "")
            if name is not None and offset.isdecimal() and size.isdecimal():
                there = int(offset) + int(request.content.total_bytes)
                found.append(Upload(name, request.match_info.get("id", ""), there, int(size)))
        return found

    @web.middleware
    async def seen(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Pass a request on, and look at what comes of it."""
        upload = request.method == "PUT"
        if upload:
            if self.draining:
                problem = Problem(problem="stopping", message="the coordinator is stopping", hint="try again")
                return web.Response(status=503, body=pack(problem), content_type="application/json")
            self._arriving[id(request)] = request
        try:
            response: web.StreamResponse = await handler(request)
        except web.HTTPException as error:
            await self._refused(request, error)
            raise
        else:
            await self._refused(request, response)
            return response
        finally:
            self._arriving.pop(id(request), None)
            self.notebook.received += int(request.content.total_bytes)

    async def _sends(self, request: web.Request, response: web.StreamResponse) -> None:
        self.notebook.sent += response.content_length or 0

    # --- refusals ---------------------------------------------------------------------------------------------

    async def _refused(self, request: web.Request, response: web.StreamResponse) -> None:
        """Write down who was refused: of the same caller and reason a record a minute, which counts the others."""
        if response.status not in _TELLING or not isinstance(response, web.Response):
            return
        body = response.body
        try:
            problem = unpack(body if isinstance(body, bytes) else b"", Problem)
        except CodecError:
            problem = Problem(problem=str(response.status), message=response.reason or "")
        self.notebook.refusals[problem.problem] += 1
        resource = request.match_info.route.resource
        path = f"{request.method} {resource.canonical if resource is not None else '?'}"
        who = request.get(NODE) or str(request.remote)
        times = self._times((who, path, problem.problem))
        if times:
            facts = {"who": who, "address": str(request.remote), "asked": path, "problem": problem.problem,
                     "message": problem.message[:500], "times": times}  # fmt: skip
            event = "problem" if response.status == 507 else "refused"
            await asyncio.to_thread(self.notebook.note, event, **facts)

    def _times(self, what: tuple[str, str, str]) -> int:
        """How many refusals a record stands for that is due now; 0 where none is."""
        now = time.monotonic()
        last, count = self._said.pop(what, (-_QUIET, 0))
        due = now - last >= _QUIET
        if due and now - self._since >= _QUIET:
            self._since, self._written = now, 0
        due = due and self._written < _MOST
        self._said[what] = (now, 0) if due else (last, count + 1)
        self._written += due
        if len(self._said) > _CALLERS:
            self._said.popitem(last=False)
        return count + 1 if due else 0
