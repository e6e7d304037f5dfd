"""`atoll status` and `atoll stop`: where a coordinator's run is, and that it end."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.errors import ConfigError
from atoll.words import printable

if TYPE_CHECKING:
    from atoll.network.identity import Identity

__all__ = ["identified", "status", "stop", "view"]

Address = Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the coordinator is.")]
Plain = Annotated[bool, typer.Option("--plain", help="Without TLS; on this machine only.")]
Keys = Annotated[
    str | None,
    typer.Option(
        "--identity",
        metavar="DIR",
        envvar="ATOLL_IDENTITY",
        help="Your keys (`atoll ca enrol --keys DIR`), or a node's directory.",
    ),
]

_WIDE = 80


def status(
    address: Address,
    plain: Plain = False,
    json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
    identity: Keys = None,
) -> None:
    """Show where a coordinator's run is.

    Round, nodes, refusals, privacy.

    Exit code 0; 5 where the run is paused, 1 where the coordinator cannot be reached.
    """
    from atoll.cli.join import parted
    from atoll.network.asking import ask

    host, port = parted(address)
    found = asyncio.run(ask(host, port, "/v1/status", None if plain else identified(identity)))
    if json:
        import msgspec

        print(msgspec.json.encode(found).decode())
    else:
        print("\n".join(line[:_WIDE].rstrip() for line in view(found)))
    sys.stdout.flush()
    if found["paused"]:
        raise typer.Exit(5)


def stop(address: Address, plain: Plain = False, identity: Keys = None) -> None:
    """Have a coordinator end; for operators.

    Uploads under way may finish, and the same `atoll serve` goes on.
    """
    from atoll.cli.join import parted
    from atoll.network.asking import ask

    host, port = parted(address)
    keys = None if plain else identified(identity)
    found = asyncio.run(ask(host, port, "/v1/admin/stop", keys, role="operator", method="POST"))
    print(f"the coordinator is {found['state']}; the same command goes on from there")


def identified(place: str | None) -> Identity:
    """The identity in a directory, or in that of a node.  Raises ConfigError."""
    from atoll.network.identity import Identity

    if place is None:
        raise ConfigError(
            "nobody has said who asks",
            hint="--identity DIR, from atoll ca enrol; --plain without TLS, on this machine",
        )
    inner = Path(place) / "identity"
    return Identity(inner if inner.is_dir() else Path(place))


def view(found: dict[str, Any]) -> list[str]:
    """A status as lines of text, for a screen of 80 columns. What nodes have said cannot steer the terminal."""
    nodes = found["nodes"]
    there = sum(each["there"] for each in nodes)
    lines = [
        f"run     {found['run']}",
        f"round   {found['round']} of {found['rounds']}",
        f"state   {printable(found['state'], breaks='')}",
        f"nodes   {there} of {len(nodes)} are there",
    ]
    answers = dict(found["answers"])
    accepted = answers.pop("accepted", 0)
    refused = ", ".join(f"{count} {word}" for word, count in sorted(answers.items()))
    lines.append(f"answers {accepted} accepted; refused: {refused or 'none'}")
    if found["refusals"]:
        words = ", ".join(f"{count} {word}" for word, count in sorted(found["refusals"].items()))
        lines.append(f"refused requests: {words}")
    if found["epsilon"] is not None:
        lines.append(f"epsilon {found['epsilon']:.3g} spent at most")
    uploads = {each["node"]: each for each in found["uploads"]}
    if nodes:
        lines += [
            "",
            f"{'node':<18} {'there':<6}{'silent':>8} {'samples':>9}  {'device':<8} {'task':<10} upload",
        ]
    for each in nodes:
        silent = "-" if each["silent"] is None else f"{each['silent']:.0f} s"
        arriving = uploads.get(each["name"])
        share = f"{arriving['received'] / 1e6:.0f}/{arriving['size'] / 1e6:.0f} MB" if arriving else ""
        lines.append(
            f"{_short(each['name'], 18):<18} {'yes' if each['there'] else 'no':<6}{silent:>8}"
            f" {each['samples'] or '-':>9}  {each['device'] or '-':<8} {each['task'] or '-':<10} {share}"
        )
    return lines


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
