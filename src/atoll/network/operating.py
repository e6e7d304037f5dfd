"""What people and machines that watch a coordinator may ask of it: its page, its figures, its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from atoll.network.coordinator import Coordinator
from atoll.network.metrics import KIND, Metrics
from atoll.network.page import Page, client_routes
from atoll.network.routes import Routes

__all__ = ["Operating"]

DRAIN = 5.0
"""Seconds at most for which a coordinator that is to stop waits for uploads that are under way."""


class Operating:
    """The operators' side of a coordinator.

    Args:
        hosts: names by which the coordinator is called.
        client: files of a client for browsers; None where there are none.

    `stopping` is set when an operator asks for the end.
    """

    def __init__(
        self, coordinator: Coordinator, routes: Routes, hosts: Sequence[str], client: Path | None = None
    ) -> None:
        self.coordinator, self.routes, self.client = coordinator, routes, client
        self.page = Page(coordinator, self._may_look, hosts)
        self.metrics = Metrics(coordinator, routes.witness)
        self.stopping = asyncio.Event()

    def install(self, site: web.Application) -> None:
        """Add these routes."""
        site.add_routes([web.get("/metrics", self._metrics), web.post("/v1/admin/stop", self._stop)])
        site.add_routes(self.page.routes())
        if self.client is not None:
            site.add_routes(client_routes(self.client))
        site.on_shutdown.append(self.page.close)

    async def drain(self) -> None:
        """Take no new uploads, and give those that are under way a few seconds."""
        witness, until = self.routes.witness, time.monotonic() + DRAIN
        witness.draining = True
        self.coordinator.desk.state = "stopping"
        while witness.uploads() and time.monotonic() < until:
            await asyncio.sleep(0.02)

    # --- who may ----------------------------------------------------------------------------------------------

    def _may_look(self, request: web.Request, *roles: str) -> None:
        """Over TLS certain roles; without it, on this machine, anybody."""
        transport = request.transport
        if transport is not None and transport.get_extra_info("ssl_object") is not None:
            self.routes.caller(request, *(roles or ("operator", "auditor", "node")))

    async def _metrics(self, request: web.Request) -> web.Response:
        self._may_look(request, "operator", "auditor")
        return web.Response(body=self.metrics.text(), headers={"Content-Type": KIND})

    async def _stop(self, request: web.Request) -> web.Response:
        caller = self.routes.caller(request, "operator")
        await asyncio.to_thread(self.coordinator.notebook.write, "operator", name=caller.name, action="stop")
        self.stopping.set()
        return web.json_response({"state": "stopping"}, status=202)
