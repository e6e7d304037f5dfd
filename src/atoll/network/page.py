"""The live page of a coordinator's run, on the coordinator's own port: to look at, and nothing else."""

from __future__ import annotations

import html
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from aiohttp import web

from atoll.network.coordinator import Coordinator
from atoll.runs.report import FILES
from atoll.runs.site import HEADERS, Pages

__all__ = ["Page", "client_routes"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Admit = Callable[[web.Request], None]
_KINDS = {".html": "text/html", ".mjs": "text/javascript", ".js": "text/javascript", ".css": "text/css",
          ".svg": "image/svg+xml", ".png": "image/png"}  # fmt: skip


class Page:
    """The routes of `atoll.runs.site`, for the one run there is; before it begins, a page that waits for it.

    Args:
        admit: refuses who may not look.
        hosts: names by which the coordinator is called; a request that names another comes from somebody's trick.
    """

    def __init__(self, coordinator: Coordinator, admit: Admit, hosts: Sequence[str]) -> None:
        self.coordinator, self.admit, self.hosts = coordinator, admit, hosts
        self._pages: Pages | None = None

    def routes(self) -> list[web.RouteDef]:
        """What is answered, to GET and HEAD only."""
        files = [path.relative_to(FILES).as_posix() for path in FILES.rglob("*") if path.is_file()]
        return [
            web.get("/", self._shown(lambda pages: pages.index)),
            web.get("/runs.json", self._shown(lambda pages: pages.listed)),
            web.get("/compare.json", self._shown(lambda pages: pages.compared)),
            web.get("/runs/{name:.+}/events", self._shown(lambda pages: pages.events), allow_head=False),
            *(
                web.get(f"/{{file:{re.escape(name)}}}", self._shown(lambda pages: pages.file))
                for name in files
            ),
        ]

    async def close(self, site: web.Application) -> None:
        """End the streams of those who look."""
        if self._pages is not None:
            await self._pages.close(site)

    def _shown(self, choose: Callable[[Pages], Handler]) -> Handler:
        async def shown(request: web.Request) -> web.StreamResponse:
            self.admit(request)
            pages = self._found()
            if pages is None:
                return self._waiting(request)
            return await pages.guard(request, choose(pages))

        return shown

    def _found(self) -> Pages | None:
        folder = self.coordinator.journal.get("run/folder")
        if self._pages is None and folder is not None and (Path(folder) / "events.jsonl").is_file():
            self._pages = Pages(Path(folder), *self.hosts)
        return self._pages

    def _waiting(self, request: web.Request) -> web.Response:
        if request.path != "/":
            raise web.HTTPNotFound(text="the run has not begun")
        nodes = self.coordinator.nodes()
        items = "".join(f"<li>{html.escape(name)}</li>" for name in nodes)
        text = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
            f"<title>Atoll: waiting</title></head><body><h1>The run has not begun</h1>"
            f"<p>{html.escape(self.coordinator.desk.state)}</p><ul>{items}</ul></body></html>"
        )
        return web.Response(text=text, content_type="text/html", headers=HEADERS)


def client_routes(place: Path) -> list[web.RouteDef]:
    """The files of a client that runs in browsers, below /client/: those that are there now, without links."""
    return [
        web.get(f"/client/{name}", _file(path))
        for path in sorted(place.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.suffix in _KINDS
        for name in _names(path.relative_to(place).as_posix())
    ]


def _names(name: str) -> list[str]:
    return [name, ""] if name == "index.html" else [name]


def _file(path: Path) -> Handler:
    async def file(request: web.Request) -> web.StreamResponse:
        headers = {**HEADERS, "Content-Type": f"{_KINDS[path.suffix]}; charset=utf-8"}
        return web.FileResponse(path, headers=headers)

    return file
