"""What a coordinator answers to those who want a certificate, or the next one."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp import web
from cryptography import x509

from atoll.errors import CodecError
from atoll.network.authority import Authority
from atoll.network.certificates import IdentityError, read
from atoll.network.invitation import MOST, Certified, Enrolling, Renewing, Trust
from atoll.network.responses import refusal
from atoll.network.tls import identify
from atoll.network.wire import Message, pack, unpack

__all__ = ["enrolment_routes"]

T = TypeVar("T", bound=Message)

_LOG = logging.getLogger(__name__)


def _nothing(event: str, /, **facts: Any) -> None:
    """Nothing is written down."""


_TRIES, _AGAIN, _ADDRESSES = 10, 10.0, 4096


class Tries:
    """How often an address may fail: ten times at once, then every ten seconds. What succeeds is not counted."""

    def __init__(self) -> None:
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (tries, as of when)

    def take(self, address: str) -> bool:
        """Whether there is another try; it is taken before the work, for many may come at a time."""
        spent, now = self._now(address)
        if spent > _TRIES - 1:
            return False
        self._set(address, spent + 1, now)
        return True

    def give(self, address: str) -> None:
        """It was no failure."""
        spent, now = self._now(address)
        self._set(address, max(0.0, spent - 1), now)

    def _now(self, address: str) -> tuple[float, float]:
        now = time.monotonic()
        spent, last = self._spent.get(address, (0.0, now))
        return max(0.0, spent - (now - last) / _AGAIN), now

    def _set(self, address: str, spent: float, now: float) -> None:
        self._spent[address] = spent, now
        self._spent.move_to_end(address)
        if len(self._spent) > _ADDRESSES:
            self._spent.popitem(last=False)


def enrolment_routes(authority: Authority, note: Callable[..., object] = _nothing) -> list[web.RouteDef]:
    """`/v1/certificate` for who holds an invitation, `/v1/renew` for who has a certificate.

    Args:
        note: writes down an event and its facts, before a certificate leaves.
    """
    tries = Tries()
    trust = pack(Trust(authority=authority.pem.decode()))

    async def trusted(request: web.Request) -> web.Response:
        return web.Response(body=trust, content_type="application/json")

    async def certificate(request: web.Request) -> web.Response:
        address = _address(request)
        if not tries.take(address):
            _LOG.warning("%s asks for certificates too often", address)
            late = refusal(429, "often", "too many requests failed", f"try again in {_AGAIN:.0f} seconds")
            late.headers["Retry-After"] = f"{_AGAIN:.0f}"
            raise late
        asked = await _message(request, Enrolling)
        ed25519, proof = bytes.fromhex(asked.ed25519), bytes.fromhex(asked.proof)
        try:
            made = await asyncio.to_thread(authority.certify, asked.token, asked.csr.encode(), ed25519, proof)
        except IdentityError as error:
            _LOG.warning("%s gets no certificate: %s", address, error.message)
            raise refusal(
                400 if error.problem == "request" else 403, error.problem, error.message, error.hint
            ) from None
        tries.give(address)
        await asyncio.to_thread(note, "certificate-issued", **_facts(authority, made), address=address)
        return _certified(authority, made)

    async def renew(request: web.Request) -> web.Response:
        caller = identify(request, authority)
        asked = await _message(request, Renewing)
        assert request.transport is not None
        shown = request.transport.get_extra_info("ssl_object").getpeercert(True)
        try:
            made = await asyncio.to_thread(authority.renew, shown, asked.csr.encode())
        except IdentityError as error:
            _LOG.warning("%s gets no other certificate: %s", caller.name, error.message)
            status = 403 if error.problem in ("unknown", "revoked", "expired") else 400
            raise refusal(status, error.problem, error.message, error.hint) from None
        await asyncio.to_thread(
            note, "certificate-renewed", **_facts(authority, made), address=_address(request)
        )
        return _certified(authority, made)

    return [
        web.get("/v1/certificate", trusted),
        web.post("/v1/certificate", certificate),
        web.post("/v1/renew", renew),
    ]


def _facts(authority: Authority, made: bytes) -> dict[str, str]:
    """Whose certificate this is."""
    known = read(x509.load_pem_x509_certificate(made), authority.certificate)
    return {"name": known.name, "role": known.role, "serial": known.serial}


def _certified(authority: Authority, made: bytes) -> web.Response:
    body = pack(Certified(certificate=made.decode(), authority=authority.pem.decode()))
    return web.Response(body=body, content_type="application/json")


async def _message(request: web.Request, kind: type[T]) -> T:
    """The message that a stranger sends, of which no more is read than such a message may have."""
    body = await request.read()
    if len(body) > MOST:
        raise refusal(400, "size", f"a request for a certificate has at most {MOST} bytes")
    try:
        return unpack(body, kind)
    except CodecError as error:
        raise refusal(400, "message", error.message, error.hint) from None


def _address(request: web.Request) -> str:
    """From where a request comes: an address of IPv4, a network of 64 bits of IPv6, for a machine has all of one."""
    try:
        address = ipaddress.ip_address(request.remote or "")
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)
