"""Requests of people to a coordinator: where the run is, that it stop."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import msgspec

from atoll.errors import CodecError, ConfigError, MissingExtraError, RunError
from atoll.network.tls import Held, client_context
from atoll.network.wire import LOOPBACK, Problem, unpack

try:
    import aiohttp
except ImportError:
    raise MissingExtraError("aiohttp", "network", "a question to a coordinator") from None

__all__ = ["ask", "where"]

_MOST = 1 << 25
_PATIENCE = aiohttp.ClientTimeout(total=15, sock_connect=5)


def where(host: str, port: int) -> str:
    """Host and port, as in an address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def ask(
    host: str, port: int, path: str, identity: Held | None, *, role: str = "auditor", method: str = "GET"
) -> Any:
    """What a coordinator answers, as plain values.

    Args:
        identity: of who asks; None without TLS, on this machine.
        role: as which one asks where there is no TLS.

    Raises ConfigError where it refuses, RunError where there is no answer: with identity, as `preflight` explains it.
    """
    context: ssl.SSLContext | bool = True
    headers = {}
    if identity is None:
        if host not in LOOPBACK:
            raise ConfigError(
                f"--plain to {host}: plain text stays on this machine", hint="leave --plain out"
            )
        headers = {"Atoll-Name": role, "Atoll-Role": role}
    else:
        if not identity.ca.is_file():
            raise ConfigError(
                f"{identity.ca} is not there: nobody is known who could vouch for the coordinator",
                hint="atoll ca enrol HOST:PORT --invitation TOKEN --keys DIR, then --identity DIR",
            )
        context = client_context(identity)
    scheme = "http" if identity is None else "https"
    try:
        async with (
            aiohttp.ClientSession(timeout=_PATIENCE, headers=headers) as session,
            session.request(
                method, f"{scheme}://{where(host, port)}{path}", ssl=context, allow_redirects=False
            ) as response,
        ):
            status, body = response.status, await response.content.read(_MOST)
            while piece := await response.content.read(_MOST - len(body)):
                body += piece
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise await _unreachable(host, port, identity, error) from None
    if status >= 300:
        try:
            told = unpack(body, Problem)
        except CodecError:
            raise RunError(f"{where(host, port)} answered {status}", hint="check host and port") from None
        raise ConfigError(f"{where(host, port)} says: {told.message}", hint=told.hint)
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        raise RunError(
            f"{where(host, port)} does not answer as a coordinator does", hint="check host and port"
        ) from None


async def _unreachable(host: str, port: int, identity: Held | None, error: BaseException) -> RunError:
    if identity is not None:
        from atoll.network.preflight import preflight

        finding = await asyncio.to_thread(preflight, host, port, identity)
        if finding.problem is not None:
            return RunError(finding.message, hint=finding.hint)
    text = (str(error) or type(error).__name__).replace(" ssl:default", "").splitlines()[0][:200]
    return RunError(f"no answer from {where(host, port)}: {text}", hint="is the coordinator running there?")
