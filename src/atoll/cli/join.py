"""`atoll join`: a node of a federation between machines."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from atoll import own
from atoll.cli.given import code
from atoll.errors import ConfigError
from atoll.network.computing import usable
from atoll.network.node import Node, Station
from atoll.network.telling import Teller, said
from atoll.network.wire import LOOPBACK, NAME, PORT, Plan
from atoll.network.worker import Ready

if TYPE_CHECKING:
    from atoll.network.identity import Identity

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
    log_json: bool = False
    silo: str | None = None
    device: str = "auto"
    start: str | None = None
    tokenizer: str | None = None
    precision: str = "float32"
    accumulate: int = 1
    recompute: bool = False


def command(wish: Wish) -> None:
    """Take part until the run is over."""
    host, port = parted(wish.address)
    if not own.named(wish.data) and not Path(wish.data).exists():  # nobody needs to be there to tell
        raise ConfigError(
            f"--data {wish.data}: there is no such file",
            hint="a CSV, Parquet or NPZ file, texts, or module:function",
        )
    if wish.start is not None and not Path(wish.start).exists():
        raise ConfigError(
            f"--base {wish.start}: there is no such file",
            hint="the .safetensors file that the run starts from, or the folder in which it is",
        )
    if wish.tokenizer is not None and not Path(wish.tokenizer).exists():
        raise ConfigError(
            f"--tokenizer {wish.tokenizer}: there is no such folder",
            hint="the folder in which the run's tokenizer.json is",
        )
    if wish.precision not in ("float32", "bfloat16"):
        raise ConfigError(f"--precision {wish.precision} is not to be had", hint="float32 or bfloat16")
    if wish.silo is not None and wish.device not in ("auto", "cpu"):
        raise ConfigError(
            f"--silo {wish.silo} computes on the CPU, and --device says {wish.device}",
            hint="leave one of them out",
        )
    usable(wish.device)
    asyncio.run(_run(wish, host, port))


async def _run(wish: Wish, host: str, port: int) -> None:
    identity = None if wish.plain else await _identified(wish, host, port)
    teller = Teller(wish.log_json)
    station = station_of(wish, host, port, identity, teller)
    working = asyncio.ensure_future(Node(station).run())
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(sign, working.cancel)
    try:
        await working
    except asyncio.CancelledError:
        teller(said("left", "left; the same command comes back"))


def parted(address: str) -> tuple[str, int]:
    """Host and port of an address.  Raises ConfigError."""
    host, _, port = address.rpartition(":") if ":" in address else (address, "", str(PORT))
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is no address", hint=f"such as coordinator.example.org:{PORT}")
    return host.strip("[]"), int(port)


async def _identified(wish: Wish, host: str, port: int) -> Identity:
    """Who this node is: by its invitation, or the certificate that it has."""
    from atoll.network.identity import Identity
    from atoll.network.invitation import Invitation

    name = wish.name
    if name is None and wish.invitation is not None:
        name = Invitation.parse(wish.invitation).name
    found = Identity(_place(wish, name) / "identity")
    if wish.invitation is not None:
        await found.enrol(host, port, wish.invitation)
    if not found.valid:
        raise ConfigError(
            f"{name or 'this node'} has no certificate"
            if found.known is None
            else f"the certificate of {found.known.name} has ended",
            hint="ask the operator for an invitation (atoll ca invite NAME), and say --invitation TOKEN",
        )
    await found.renew(host, port)
    return found


def _place(wish: Wish, name: str | None) -> Path:
    if wish.place is None and name is None:
        raise ConfigError("the node has no name", hint="--name hospital-a, or --invitation TOKEN")
    return Path(wish.place or Path.home() / ".atoll" / "nodes" / str(name))


def station_of(
    wish: Wish, host: str, port: int, identity: Identity | None, teller: Callable[[str], object] = print
) -> Station:
    """How the node is set.  Raises ConfigError."""
    name = wish.name if identity is None or identity.known is None else identity.known.name
    if name is None or not NAME.fullmatch(name):
        raise ConfigError(
            f"--name {name!r} is no name of a node" if name else "the node has no name",
            hint="--name hospital-a: small letters, digits and -",
        )
    if wish.name not in (None, name):
        raise ConfigError(f"--name {wish.name}, but the certificate is of {name}", hint="leave --name out")
    admitted = code(wish.code)
    if own.named(wish.data):
        admitted[wish.data] = "data"
    if wish.plain and host not in LOOPBACK:
        raise ConfigError(f"--plain to {host}: plain text stays on this machine", hint="leave --plain out")
    if wish.silo is not None:
        from atoll.engines.silo import processes

        processes(wish.silo)
    context, keys = None, dict[str, Any]()
    if identity is not None:
        from atoll.network.masking import certified
        from atoll.network.renewal import renewed
        from atoll.network.tls import client_context

        context = client_context(identity)
        keys = {
            "keys": identity.place, "certificate": identity.certificate, "trusts": certified(identity.ca.read_bytes()),
            "renewed": lambda: renewed(identity, host, port, teller),
        }  # fmt: skip
    where = f"[{host}]" if ":" in host else host
    return Station(
        url=f"{'http' if context is None else 'https'}://{where}:{port}",
        name=name,
        context=context,
        policy=None if wish.policy is None else str(Path(wish.policy).resolve()),
        source=wish.data if own.named(wish.data) else str(Path(wish.data).resolve()),
        place=_place(wish, name),
        admitted=admitted,
        approve=_approval(wish),
        tell=teller,
        limit=wish.limit,
        memory=wish.memory << 20,
        repeatable=wish.repeatable_noise,
        silo=wish.silo,
        device=wish.device,
        start=None if wish.start is None else str(Path(wish.start).resolve()),
        tokenizer=None if wish.tokenizer is None else str(Path(wish.tokenizer).resolve()),
        precision=wish.precision,
        accumulate=wish.accumulate,
        recompute=wish.recompute,
        **keys,
    )


def _approval(wish: Wish) -> Callable[[Plan, Ready], bool]:
    """Shows what would leave this machine, and asks, or is told that this was approved."""
    stream = sys.stderr if wish.log_json else sys.stdout

    def approved(plan: Plan, ready: Ready) -> bool:
        print(ready.text, end="", file=stream, flush=True)
        if wish.approve:
            return True
        if not sys.stdin.isatty():
            raise ConfigError("nobody is here to approve this", hint="--approve, once you have read it")
        return typer.confirm("Take part?", err=wish.log_json)

    return approved
