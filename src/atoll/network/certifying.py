"""An authority that answers by itself: certificates for who has an invitation, where there is no coordinator."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence

from aiohttp import web

from atoll.errors import ConfigError
from atoll.network.authority import Authority
from atoll.network.enrolment import enrolment_routes
from atoll.network.tls import server_context

__all__ = ["certify"]


async def certify(
    authority: Authority, hosts: Sequence[str], address: str, port: int, ready: Callable[[], object]
) -> None:
    """Answer until this is cancelled.

    Args:
        hosts: names and addresses under which others call this machine.
        address, port: where to listen.

    Raises ConfigError where the port cannot be had.
    """
    site = web.Application(client_max_size=1 << 16)
    site.add_routes(enrolment_routes(authority))
    runner = web.AppRunner(site, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address, port, ssl_context=server_context(authority, hosts)).start()
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            what = "is taken" if taken else f"cannot be had: {error.strerror or error}"
            raise ConfigError(f"port {port} of {address} {what}", hint="choose another --port") from None
        ready()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
