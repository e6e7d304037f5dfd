"""TLS between nodes and coordinator: 1.3 and nothing older, certificates on both sides, of the federation's authority.

A caller without certificate may say hello and ask for one. That a certificate was revoked is no business of TLS: it is
looked up at every request, so that it counts for connections that are open.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atoll.errors import CodecError, MissingExtraError
from atoll.network.authority import Authority
from atoll.network.certificates import IdentityError, fingerprint_of, to_pem
from atoll.network.invitation import MOST, Trust
from atoll.network.responses import refusal
from atoll.network.wire import unpack

try:
    import aiohttp
    from aiohttp import web
    from cryptography import x509
except ImportError:
    raise MissingExtraError("aiohttp", "network", "a federation between machines") from None

__all__ = [
    "OPEN", "Caller", "Held", "blind_context", "client_context", "exchange", "fingerprint", "gate", "identify",
    "newest", "refusal", "renewing", "server_context", "trusting_context",
]  # fmt: skip

OPEN = frozenset({"/healthz", "/v1/hello", "/v1/certificate"})
"""What may be asked without a certificate."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_DAY = 86400.0
_PATIENCE = aiohttp.ClientTimeout(total=30)


@dataclass(frozen=True)
class Caller:
    """Who makes a request."""

    name: str | None
    role: str | None


class Held(Protocol):
    """Where a caller's files are: `atoll.network.identity.Identity`."""

    ca: Path
    pem: Path


# --- contexts -----------------------------------------------------------------------------------------------------


def server_context(authority: Authority, hosts: Sequence[str]) -> ssl.SSLContext:
    """The coordinator's side. A certificate of another authority, or out of its dates, fails in the handshake.

    Args:
        hosts: names and addresses under which nodes call it.
    """
    context = newest(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=authority.pem.decode())
    context.load_cert_chain(authority.server_certificate(hosts))
    context.num_tickets = 0  # each connection shows its certificate anew
    return context


async def renewing(context: ssl.SSLContext, authority: Authority, hosts: Sequence[str]) -> None:
    """Keep the certificate of a coordinator that runs for long; new connections see it. Never returns."""
    while True:
        await asyncio.sleep(_DAY)
        context.load_cert_chain(await asyncio.to_thread(authority.server_certificate, hosts))


def trusting_context(ca: Path) -> ssl.SSLContext:
    """A stranger's side: the coordinator must have a certificate of this authority's, for the host that is called."""
    context = newest(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    return context


def client_context(identity: Held) -> ssl.SSLContext:
    """A caller's side: as a stranger's, with its certificate, if it has one."""
    context = trusting_context(identity.ca)
    if identity.pem.exists():
        context.load_cert_chain(identity.pem)
    return context


def blind_context() -> ssl.SSLContext:
    """A caller's side before it knows whom to trust. It shows nothing, and believes nothing that it is told."""
    context = newest(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def newest(protocol: int) -> ssl.SSLContext:
    """A context for TLS 1.3 and nothing older, which trusts nobody yet."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])
    return context


# --- first contact ------------------------------------------------------------------------------------------------


async def fingerprint(host: str, port: int) -> tuple[bytes, str]:
    """The certificate (PEM) that a coordinator calls its authority's, and its SHA-256. Trust it only if you know that.

    Raises aiohttp.ClientError or TimeoutError where no connection is had, CodecError where there is no coordinator.
    """
    _, body = await exchange(host, port, blind_context(), "/v1/certificate")
    told = unpack(body, Trust).authority.encode()
    try:
        certificate = x509.load_pem_x509_certificate(told)
    except ValueError:
        raise CodecError(f"{host}:{port} tells no certificate of an authority") from None
    return to_pem(certificate), fingerprint_of(certificate)  # of what was sent beside it nothing is kept


async def exchange(
    host: str, port: int, context: ssl.SSLContext, path: str, body: bytes | None = None
) -> tuple[int, bytes]:
    """Status and body of an answer to GET, or to POST with a body; of a long body the beginning."""
    address = f"https://[{host}]:{port}{path}" if ":" in host else f"https://{host}:{port}{path}"
    method, answer = "GET" if body is None else "POST", b""
    async with (
        aiohttp.ClientSession(timeout=_PATIENCE) as session,
        session.request(method, address, data=body, ssl=context, allow_redirects=False) as response,
    ):
        async for piece in response.content.iter_any():
            answer += piece
            if len(answer) > MOST:
                break
        return response.status, answer


# --- who calls ----------------------------------------------------------------------------------------------------


def identify(request: web.Request, authority: Authority) -> Caller:
    """Who makes a request, by the certificate of its connection.

    Refuses with 401 who shows none, but for what is open, and with 403 whose certificate does not count any more.
    """
    transport = request.transport
    tls = None if transport is None else transport.get_extra_info("ssl_object")
    certificate = None if tls is None else tls.getpeercert(True)
    if certificate is None:
        if request.path in OPEN:
            return Caller(None, None)
        raise refusal(401, "unknown", "there is no client certificate", "join with an invitation first")
    try:
        known = authority.check(certificate)
    except IdentityError as error:
        raise refusal(403, error.problem, error.message, error.hint) from None
    return Caller(known.name, known.role)


def gate(authority: Authority) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """A middleware: nothing that is not open is served to strangers, whatever its handler asks."""

    @web.middleware
    async def gated(request: web.Request, handler: Handler) -> web.StreamResponse:
        identify(request, authority)
        return await handler(request)

    return gated
