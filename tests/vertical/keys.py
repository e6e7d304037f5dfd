"""Keys of parties, enrolled at an authority that answers by itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

from atoll.network.authority import Authority
from atoll.network.certifying import certify
from atoll.network.identity import Identity
from atoll.network.tls import newest
from atoll.parties.framed import Secured


def party_keys(authority: Authority, name: str, place: Path, role: str = "party") -> Path:
    """A directory with keys and certificate of that name."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]

    async def enrolled() -> None:
        ready = asyncio.Event()
        serving = asyncio.create_task(certify(authority, ["127.0.0.1"], "127.0.0.1", port, ready.set))
        await asyncio.wait_for(ready.wait(), 10)
        await Identity(place).enrol("127.0.0.1", port, authority.invite(name, role))
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    asyncio.run(enrolled())
    return place


def bare(place: Path) -> Secured:
    """What somebody who does not keep to the rules makes of these keys: it believes everybody."""
    contexts = newest(ssl.PROTOCOL_TLS_SERVER), newest(ssl.PROTOCOL_TLS_CLIENT)
    for context in contexts:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(place / "identity.pem")
    return Secured(*contexts, lambda der: "guest")
