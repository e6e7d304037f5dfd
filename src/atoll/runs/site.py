"""The routes of the live page: its files, the runs of a directory, and each run's events as they are written.

Needs aiohttp.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from atoll.errors import ConfigError, MissingExtraError
from atoll.runs.compare import Comparison
from atoll.runs.digest import Digest
from atoll.runs.events import follow
from atoll.runs.folder import RunFolder
from atoll.runs.report import FILES
from atoll.runs.tail import Glances, lines, on_a_line

try:
    from aiohttp import web
except ImportError:
    raise MissingExtraError("aiohttp", "dash", "the live page") from None

__all__ = ["ANY", "HEADERS", "Pages", "application", "web"]

ANY = ("0.0.0.0", "::", "")
"""Addresses that mean all of this machine's."""

_LOOP = ("localhost", "127.0.0.1", "[::1]", "::1")
_PACE = 0.25  # seconds between looks at a log
_SLOW = 2.0  # seconds between looks at a run's state
_BEAT = 15.0  # seconds of silence, after which a comment is sent
_KEPT = 8  # digests
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def application(place: str | Path, host: str = "127.0.0.1") -> web.Application:
    """The server's routes.  Raises ConfigError where there is no such directory."""
    pages = Pages(Path(place), host)
    site = web.Application(middlewares=[pages.guard])
    site.add_routes(
        [
            web.get("/", pages.index),
            web.get("/runs.json", pages.listed),
            web.get("/compare.json", pages.compared),
            web.get("/runs/{name:.+}/events", pages.events, allow_head=False),
            web.get("/{file:.+}", pages.file),
        ]
    )
    site.on_shutdown.append(pages.close)
    return site


# --- answers ------------------------------------------------------------------------------------------------


class Pages:
    """Handles requests. Only what was found in the directory, or ships with the page, has a name here.

    Args:
        hosts: names by which this machine may be called.
    """

    def __init__(self, place: Path, *hosts: str) -> None:
        if not place.is_dir():
            raise ConfigError(
                f"there is no directory {place}", hint="atoll run makes runs; name where they are"
            )
        self.place = place
        self.only = RunFolder(place).name if (place / "events.jsonl").is_file() else None
        names = {f"[{host.lower()}]" if ":" in host else host.lower() for host in hosts}
        self.hosts = None if {*hosts} & {*ANY} else {*_LOOP, *names}
        self.files = {path.relative_to(FILES).as_posix(): path for path in FILES.rglob("*") if path.is_file()}
        self.glances = Glances()
        self.histories: dict[str, _History] = {}
        self.streams: set[asyncio.Task[Any]] = set()

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        name = request.headers.get("Host", "").lower()
        name = name if name.endswith("]") else name.rpartition(":")[0] or name
        if (
            self.hosts is not None and name not in self.hosts
        ):  # a page elsewhere, by a name it made point here
            raise web.HTTPForbidden(text="this page answers to its own address only", headers=HEADERS)
        if request.method not in ("GET", "HEAD"):
            raise web.HTTPMethodNotAllowed(request.method, ["GET"], headers=HEADERS)
        try:
            return await handler(request)  # type: ignore[no-any-return]
        except web.HTTPException as error:
            error.headers.update(HEADERS)
            raise

    def runs(self) -> dict[str, RunFolder]:
        """The runs there are, by their path inside the directory, the newest first."""
        if self.only is not None:
            return {self.only: RunFolder(self.place)}
        return {
            run.path.relative_to(self.place).as_posix(): run for run in reversed(RunFolder.all(self.place))
        }

    def run(self, name: str) -> RunFolder:
        found = self.runs().get(name)
        if found is None:
            raise web.HTTPNotFound(text="there is no such run")
        return found

    async def index(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(self.files["index.html"], headers=HEADERS)

    async def file(self, request: web.Request) -> web.StreamResponse:
        path = self.files.get(request.match_info["file"])
        if path is None:
            raise web.HTTPNotFound(text="not found")
        return web.FileResponse(path, headers=HEADERS)

    async def listed(self, request: web.Request) -> web.StreamResponse:
        return _json(await asyncio.to_thread(self._list))

    def _list(self) -> dict[str, Any]:
        found = []
        for name, folder in self.runs().items():
            with contextlib.suppress(OSError):  # it was removed meanwhile, or may not be read
                found.append(self.glances.look(name, folder))
        return {"place": str(self.place), "only": self.only, "runs": found}

    async def compared(self, request: web.Request) -> web.StreamResponse:
        folders = {name: self.run(name) for name in request.query.getall("run", [])}
        return _json(await asyncio.to_thread(self._compare, folders))

    def _compare(self, folders: dict[str, RunFolder]) -> dict[str, Any]:
        names = {folder.name: name for name, folder in folders.items()}
        try:
            comparison = Comparison.of(list(folders.values())).to_dict()
            runs = [self.glances.look(name, folder) for name, folder in folders.items()]
        except (ConfigError, OSError) as error:
            raise web.HTTPConflict(text=str(error)) from None
        for group in comparison["groups"]:
            group["runs"] = [names.get(name, name) for name in group["runs"]]
        return {"comparison": comparison, "runs": runs}

    # --- the stream -------------------------------------------------------------------------------------------

    async def events(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        folder = self.run(name)
        headers = {**HEADERS, "Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self.streams.add(task)
        try:
            after = request.headers.get("Last-Event-ID") or request.query.get("after") or ""
            async for message in self._messages(name, folder, int(after) if after.isdecimal() else None):
                await response.write(message)
        except FileNotFoundError:
            with contextlib.suppress(ConnectionError):
                await response.write(_message("gone", b"{}"))
        except (ConnectionError, asyncio.CancelledError):
            pass  # nobody listens any more, or the server ends
        finally:
            self.streams.discard(task)
        return response

    async def _messages(self, name: str, folder: RunFolder, after: int | None) -> AsyncIterator[bytes]:
        file = folder.events_file
        yield b"retry: 1000\n\n"
        told, quiet, slow = "", 0.0, 0.0
        if after is None or after > file.stat().st_size or not on_a_line(file, after):
            after = None  # not a place in this log: begin anew
        while True:
            if after is None or file.stat().st_size < after:  # the file was replaced
                told = await self._status(name, folder)
                content, after = await self._history(name).read(file, told)
                yield _message("snapshot", content, after)
            news = await asyncio.to_thread(_news, file, after)
            for content, after in news:
                yield _message("", content, after)
            quiet = 0.0 if news else quiet + _PACE
            slow += _PACE
            if slow >= _SLOW or not told:
                slow = 0.0
                if (now := await self._status(name, folder)) != told:
                    told = now
                    yield _message("status", msgspec.json.encode({"status": told}))
            if quiet >= _BEAT:
                quiet = 0.0
                yield b": still here\n\n"
            await asyncio.sleep(_PACE)

    async def _status(self, name: str, folder: RunFolder) -> str:
        return str((await asyncio.to_thread(self.glances.look, name, folder))["status"])

    def _history(self, name: str) -> _History:
        found = self.histories.pop(name, None) or _History()
        self.histories[name] = found  # the last one used is the last to go
        while len(self.histories) > _KEPT:
            self.histories.pop(next(iter(self.histories)))
        return found

    async def close(self, _: web.Application) -> None:
        if self.streams:  # a run that has just ended closes its page: let the last lines through
            await asyncio.sleep(2 * _PACE)
        for task in list(self.streams):
            task.cancel()


class _History:
    """A run's digest, which grows with its log, and how far it has read."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.digest, self.after, self.file = Digest(), 0, 0

    async def read(self, file: Path, status: str) -> tuple[bytes, int]:
        """A snapshot of the log as it is now, and the byte after its last line."""
        async with self.lock:
            return await asyncio.to_thread(self._read, file, status)

    def _read(self, file: Path, status: str) -> tuple[bytes, int]:
        about = file.stat()
        if about.st_ino != self.file or about.st_size < self.after:
            self.digest, self.after, self.file = Digest(), 0, about.st_ino
        for event, place in follow(file, self.after):
            self.after = place
            if event is not None:
                self.digest.add(event)
        return msgspec.json.encode({"status": status, "events": self.digest.events()}), self.after


def _news(file: Path, after: int) -> list[tuple[bytes, int]]:
    if file.stat().st_size == after:
        return []
    return list(lines(file, after))


def _message(kind: str, content: bytes, place: int | None = None) -> bytes:
    """A server-sent event; the place, where there is one, is what the reader comes back with."""
    head = f"event: {kind}\n" if kind else ""
    return (head + ("" if place is None else f"id: {place}\n")).encode() + b"data: " + content + b"\n\n"


def _json(value: Any) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), headers={**HEADERS, "Content-Type": "application/json"}
    )
