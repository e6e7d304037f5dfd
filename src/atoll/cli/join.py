"""`atoll join`: a node of a federation between machines."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import typer

from atoll import own
from atoll.errors import ConfigError
from atoll.network.node import Node, Station
from atoll.network.serving import LOOPBACK, PORT
from atoll.network.wire import NAME, Plan
from atoll.network.worker import Ready

__all__ = ["Wish", "command"]


@dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    address: str
    data: str
    name: str | None = None
    place: str | None = None
    plain: bool = False
    approve: bool = False
    invitation: str | None = None
    policy: str | None = None
    code: list[str] = field(default_factory=list)
    limit: float | None = None
    memory: int = 0
    repeatable_noise: bool = False


def command(wish: Wish) -> None:
    """Take part until the run is over."""
    host, port = parted(wish.address)
    station = station_of(wish, host, port)
    asyncio.run(_run(station))


async def _run(station: Station) -> None:
    working = asyncio.ensure_future(Node(station).run())
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(sign, working.cancel)
    try:
        await working
    except asyncio.CancelledError:
        print("left; the same command comes back", flush=True)


def parted(address: str) -> tuple[str, int]:
    """Host and port of an address.  Raises ConfigError."""
    host, _, port = address.rpartition(":") if ":" in address else (address, "", str(PORT))
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is no address", hint=f"such as coordinator.example.org:{PORT}")
    return host.strip("[]"), int(port)


def station_of(wish: Wish, host: str, port: int) -> Station:
    """How the node is set.  Raises ConfigError."""
    if wish.name is None or not NAME.fullmatch(wish.name):
        raise ConfigError(
            f"--name {wish.name!r} is no name of a node" if wish.name else "the node has no name",
            hint="--name hospital-a: small letters, digits and -",
        )
    admitted = {}
    for text in wish.code:
        key, _, name = text.partition("=")
        if key not in own.KEYS or not own.named(name):
            raise ConfigError(
                f"--code {text}", hint="such as --code model=nets:Small, a module of this machine"
            )
        admitted[name] = key
    if own.named(wish.data):
        admitted[wish.data] = "data"
    if wish.plain and host not in LOOPBACK:
        raise ConfigError(f"--plain to {host}: plain text stays on this machine", hint="leave --plain out")
    place = Path(wish.place or Path.home() / ".atoll" / "nodes" / wish.name)
    return Station(
        url=f"http://{host}:{port}",
        name=wish.name,
        source=wish.data if own.named(wish.data) else str(Path(wish.data).resolve()),
        place=place,
        admitted=admitted,
        approve=_approved if wish.approve else _asked,
        tell=_say,
        limit=wish.limit,
        memory=wish.memory << 20,
        repeatable=wish.repeatable_noise,
    )


def _say(text: str) -> None:
    print(text, flush=True)


def _shown(plan: Plan, ready: Ready) -> None:
    for line in ready.lines:
        print(line)
    sys.stdout.flush()


def _approved(plan: Plan, ready: Ready) -> bool:
    _shown(plan, ready)
    return True


def _asked(plan: Plan, ready: Ready) -> bool:
    _shown(plan, ready)
    if not sys.stdin.isatty():
        raise ConfigError("nobody is here to approve this", hint="--approve, once you have read it")
    return typer.confirm("Take part?")
