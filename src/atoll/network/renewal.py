"""The next certificate of a node that runs for long."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta

from atoll.errors import AtollError
from atoll.network.certificates import IdentityError, Known, now
from atoll.network.identity import Identity
from atoll.network.telling import said
from atoll.network.tls import client_context

__all__ = ["asked_at", "renewed"]

_LOOK = 3600.0
"""Seconds after which the clock is looked at again: a machine that slept does not know for how long."""


def asked_at(known: Known, at: datetime, draw: float) -> datetime:
    """When a node asks for its next certificate: once it is due, and a quarter to a half of what is left has gone by.

    The same where it asked in vain: more and more often towards the end.

    Args:
        at: the time now.
        draw: from 0 to 1, each node's own, so that those who came together do not ask together.
    """
    due = max(at, known.ends - (known.ends - known.begins) / 3)
    return due + (known.ends - due) * (1 + draw) / 4


async def renewed(
    identity: Identity, host: str, port: int, tell: Callable[[str], object]
) -> tuple[ssl.SSLContext, str]:
    """Wait until there is another certificate: a context that shows it, and itself in PEM.

    Raises IdentityError where the one that is there has ended, or there is none.
    """
    while identity.known is not None and identity.valid:
        known = identity.known
        when = asked_at(known, now(), random.random())
        while (left := (when - now()) / timedelta(seconds=1)) > 0:
            await asyncio.sleep(min(left, _LOOK))
        try:
            if await identity.renew(host, port):
                text = f"has a certificate until {identity.known.ends:%Y-%m-%d}"
                tell(
                    said("renewed", text, serial=identity.known.serial, ends=identity.known.ends.isoformat())
                )
                return client_context(identity), identity.certificate
        except (AtollError, OSError) as error:
            text = f"has no other certificate yet, and its own ends on {known.ends:%Y-%m-%d}: {error}"
            tell(said("not-renewed", text, ends=known.ends.isoformat()))
    raise IdentityError(
        "expired", "the node's certificate has ended", hint="ask the operator for an invitation"
    )
