"""`atoll ca`: the authority of a federation between machines."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.errors import ConfigError

if TYPE_CHECKING:
    from atoll.network.authority import Authority

__all__ = ["ca"]

ca = typer.Typer(help="Who may take part in a federation between machines.", no_args_is_help=True)

Place = Annotated[
    Path, typer.Option("--ca", metavar="DIR", envvar="ATOLL_CA", help="The authority's directory.")
]


def _authority(place: Path) -> Authority:
    from atoll.network.authority import Authority

    return Authority(place)


@ca.command()
def init(place: Place = Path("ca")) -> None:
    """Make an authority: once for a federation, on the coordinator's machine."""
    from atoll.network.authority import Authority

    made = Authority.init(place)
    print(f"made the authority {place}; keep {place / 'ca.key'} to yourself, and a copy of the directory")
    print(f"fingerprint {made.fingerprint}")
    print("next: atoll ca invite NAME, for each machine that is to take part")


@ca.command()
def invite(
    name: Annotated[str, typer.Argument(help="What the node or person is called, such as hospital-a.")],
    role: Annotated[str, typer.Option(help="node, operator, auditor or party.")] = "node",
    days: Annotated[float, typer.Option(help="How long the invitation lives.")] = 7.0,
    place: Place = Path("ca"),
) -> None:
    """Invite a machine, or a person, once. The text is a secret until it has been used."""
    authority = _authority(place)
    if not 0 < days <= 365:
        raise ConfigError(f"--days {days:g}, but an invitation lives for up to a year", hint="--days 7")
    token = authority.invite(name, role, timedelta(days=days))
    print(token)
    if role == "party":
        print(f"\non the other machine, while atoll ca serve runs here:\natoll ca enrol HOST:PORT --invitation {token}"
              f" --keys {name}")  # fmt: skip
    elif role == "node":
        print(f"\non the other machine: atoll join HOST:PORT --invitation {token} --data FILE")
    else:
        print(f"\non the other machine: atoll ca enrol HOST:PORT --invitation {token} --keys DIR")


@ca.command()
def revoke(
    what: Annotated[str, typer.Argument(metavar="NAME|SERIAL", help="Whose certificates, or which one.")],
    place: Place = Path("ca"),
) -> None:
    """Take back certificates and invitations; a running coordinator heeds it at the next request."""
    count = _authority(place).revoke(what)
    print(f"revoked {what}: {count} certificate{'' if count == 1 else 's'}, and invitations that were open")


@ca.command("list")
def listing(
    place: Place = Path("ca"),
    json: Annotated[bool, typer.Option("--json", help="A JSON line each.")] = False,
) -> None:
    """List who is invited and who has certificates."""
    entries = _authority(place).list()
    if json:
        import msgspec

        for entry in entries:
            print(msgspec.json.encode(entry).decode())
        return
    if not entries:
        print("nobody is invited; atoll ca invite NAME")
        return
    from rich.table import Table

    from atoll.cli.runs import console

    table = Table(box=None, pad_edge=False)
    for column in ("name", "role", "state", "until", "serial"):
        table.add_column(column, no_wrap=True)
    for entry in entries:
        table.add_row(entry.name, entry.role, entry.state, f"{entry.ends:%Y-%m-%d}", entry.serial or "")
    console().print(table)


@ca.command()
def server(
    hosts: Annotated[
        list[str], typer.Argument(metavar="HOST", help="Names and addresses that nodes call it by.")
    ],
    place: Place = Path("ca"),
) -> None:
    """Make the coordinator's certificate, or renew it."""
    from atoll.network.certificates import server_ends

    file = _authority(place).server_certificate(hosts)
    print(f"{file} is for {', '.join(hosts)}, until {server_ends(file.read_bytes()):%Y-%m-%d}")


@ca.command()
def serve(
    hosts: Annotated[
        list[str],
        typer.Argument(metavar="HOST", help="Names and addresses that others call this machine by."),
    ],
    port: Annotated[int, typer.Option(help="Where to listen.")] = 8472,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Of this machine.")] = "127.0.0.1",
    place: Place = Path("ca"),
) -> None:
    """Give certificates to who has an invitation, and nothing else; until Ctrl-C. For runs without a coordinator."""
    from atoll.network.certifying import certify

    def ready() -> None:
        print(f"{place} certifies at {host}:{port}; Ctrl-C ends it", flush=True)

    try:
        asyncio.run(certify(_authority(place), hosts, host, port, ready))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@ca.command()
def enrol(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The coordinator, or atoll ca serve.")],
    invitation: Annotated[str, typer.Option(metavar="TOKEN", help="What the operator gave you.")],
    keys: Annotated[Path, typer.Option(metavar="DIR", help="Where keys and certificate go.")],
) -> None:
    """Take up an invitation as operator, auditor or party; nodes do so when they join."""
    from atoll.network.identity import Identity

    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is not HOST:PORT", hint="such as fl.example.org:8443")
    identity = Identity(keys)
    asyncio.run(identity.enrol(host.strip("[]"), int(port), invitation))
    known = identity.known
    assert known is not None
    print(f"you are {known.name}, {known.role}, until {known.ends:%Y-%m-%d}")
    if known.role == "party":
        print(f"\natoll vertical join FILE.toml --as {known.name} --keys {keys}")
        return
    print(f"\ncurl --cacert {keys / 'ca.pem'} --cert {keys / 'identity.pem'} https://{address}/v1/status")
