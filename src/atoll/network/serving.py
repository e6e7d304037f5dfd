"""A coordinator's process: its port, its rounds, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import ssl
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.errors import ConfigError, MissingExtraError
from atoll.network.coordinator import Build, Coordinator, Office
from atoll.network.lines import Lines
from atoll.network.operating import Operating
from atoll.network.routes import Identify, Routes, plainly
from atoll.network.wire import LOOPBACK, PORT

try:
    from aiohttp import web
except ImportError:
    raise MissingExtraError("aiohttp", "network", "a coordinator") from None

__all__ = ["Address", "serve"]

_READ = 1 << 18
"""Bytes of a body that a connection takes before it is told to wait; TLS gives as many at a time."""

_LINGER = 10.0
"""Seconds at most for which nodes are told that the run is over."""


@dataclass(frozen=True)
class Address:
    """Where a coordinator listens. Without a `context` it is not encrypted, and this machine's alone."""

    host: str = "127.0.0.1"
    port: int = PORT
    context: ssl.SSLContext | None = None
    identify: Identify = plainly
    names: Sequence[str] = ()
    """By which nodes and people call it."""
    client: Path | None = None
    """Files of a client for browsers."""
    renewing: Callable[[], Coroutine[Any, Any, None]] | None = None
    """Keeps the certificate, for as long as it is served."""

    def check(self) -> None:
        """Raises ConfigError where plain text would leave the machine."""
        if self.context is None and self.host not in LOOPBACK:
            raise ConfigError(
                f"--plain on {self.host}: without TLS anybody on the way could read and change everything",
                hint="make certificates (atoll ca init), or listen on 127.0.0.1",
            )


async def serve(
    office: Office,
    build: Build,
    address: Address,
    *,
    ready: Callable[[str, Coordinator], object] = lambda url, coordinator: None,
    told: Callable[[str], object] = lambda state: None,
    more: Callable[[Coordinator, Routes, web.Application], object] = lambda *_: None,
) -> Any:
    """Serve one run until it is over, or SIGTERM or SIGINT comes; what came of it, None where it was stopped.

    Args:
        ready: hears the address once it answers.
        told: hears what the run is doing whenever that changes.
        more: may add to the routes.

    Raises what ended the run, ConfigError where the port cannot be had.
    """
    address.check()
    coordinator = await asyncio.to_thread(Coordinator, office, build)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(sign, stopping.set)
    routes = Routes(coordinator, address.identify)
    site = routes.application()
    operating = Operating(coordinator, routes, (address.host, *address.names), address.client)
    operating.install(site)
    more(coordinator, routes, site)
    runner = web.AppRunner(
        site, handle_signals=False, access_log=None, shutdown_timeout=1.0, keepalive_timeout=75,
        read_bufsize=_READ,
    )  # fmt: skip
    await runner.setup()
    try:
        gc.freeze()  # what was imported stays: looking through it took the collector half a second, again and again
        routes.lines = lines = Lines(runner.server)
        port = await _listening(runner, address)
        scheme = "http" if address.context is None else "https"
        coordinator.start()
        ready(f"{scheme}://{address.host}:{port}", coordinator)
        watching = [asyncio.create_task(each) for each in (_watch(coordinator, told), lines.watch())]
        if address.renewing is not None:
            watching.append(asyncio.create_task(address.renewing()))
        waits = [
            asyncio.create_task(each.wait()) for each in (coordinator.ended, stopping, operating.stopping)
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not coordinator.ended.is_set():
            await operating.drain()
            await coordinator.stop()
        elif coordinator.result is not None:
            await _farewell(coordinator, routes)
        for each in (*waits, *watching):
            each.cancel()
    finally:
        await runner.cleanup()
        await asyncio.to_thread(coordinator.close)
    if coordinator.error is not None:
        raise coordinator.error
    return coordinator.result


async def _listening(runner: web.AppRunner, address: Address) -> int:
    try:
        await web.TCPSite(
            runner, address.host, address.port, ssl_context=address.context, backlog=1024
        ).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {address.port} of {address.host} is taken", hint="choose another --port"
            ) from None
        raise ConfigError(f"cannot listen on {address.host}: {error.strerror or error}") from None
    return int(runner.addresses[0][1])


async def _watch(coordinator: Coordinator, told: Callable[[str], object]) -> None:
    before = None
    while True:
        if (state := coordinator.desk.state) != before:
            told(state)
            before = state
            await asyncio.to_thread(coordinator.notebook.state, state)
        await asyncio.sleep(0.2)


async def _farewell(coordinator: Coordinator, routes: Routes) -> None:
    """Stay until the nodes that are there have heard that the run is over."""
    until = time.monotonic() + _LINGER
    routes.wake()
    while coordinator.desk.waiting and time.monotonic() < until:
        await asyncio.sleep(0.05)
