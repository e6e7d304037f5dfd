"""How one comes to a certificate: an invitation's text, and what is said over the wire about it.

An invitation is `atoll1.NAME.SECRET.PIN`: the secret is 16 random bytes in base 32, the pin the first half of the
SHA-256 of the authority's certificate, so that who joins knows whom to trust before it says anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from atoll.network.certificates import IdentityError
from atoll.network.wire import NAME, Message, whole

__all__ = ["MOST", "Certified", "Enrolling", "Invitation", "Renewing", "Trust", "to_sign"]

MOST = 1 << 14
"""Bytes of a message about certificates."""

_PIN = 32
_FORM = re.compile(rf"atoll1\.({NAME.pattern})\.([a-z2-7]{{26}})\.([0-9a-f]{{{_PIN}}})")

Pem = Annotated[str, Meta(max_length=8192)]


@dataclass(frozen=True)
class Invitation:
    """Who may come once, and what tells the authority's certificate."""

    name: str
    secret: str
    pin: str

    @staticmethod
    def new(name: str, fingerprint: str) -> Invitation:
        secret = base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()
        return Invitation(name, secret, fingerprint[:_PIN])

    @staticmethod
    def parse(text: str) -> Invitation:
        """Read one.  Raises IdentityError for any other text, which is not repeated: it may be a secret."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise IdentityError(
                "token", "this is no invitation", hint="copy the whole text, which begins with atoll1."
            )
        return Invitation(*found.groups())

    def fits(self, fingerprint: str) -> bool:
        """Whether an authority with this fingerprint gave it."""
        return secrets.compare_digest(fingerprint[:_PIN], self.pin)

    @property
    def digest(self) -> str:
        """What the authority keeps of it."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def __str__(self) -> str:
        return f"atoll1.{self.name}.{self.secret}.{self.pin}"

    def __repr__(self) -> str:
        return f"Invitation({self.name!r})"


def to_sign(request: bytes) -> bytes:
    """What the Ed25519 key signs, to show that it is held by who makes a request (its DER form)."""
    return b"atoll certificate 1\x00" + request


class Trust(Message, frozen=True):
    """The authority's certificate, for who knows its fingerprint."""

    authority: Pem


class Enrolling(Message, frozen=True):
    """An invitation is taken up: for the key of a request, and for an Ed25519 key that has signed the request."""

    token: Annotated[str, Meta(max_length=256)]
    csr: Pem
    ed25519: Annotated[str, whole("[0-9a-f]{64}")]
    proof: Annotated[str, whole("[0-9a-f]{128}")]


class Renewing(Message, frozen=True):
    """A request by who has a certificate, for the next one."""

    csr: Pem


class Certified(Message, frozen=True):
    """A certificate, and the authority's."""

    certificate: Pem
    authority: Pem
