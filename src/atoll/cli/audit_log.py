"""`atoll audit-log`: what a coordinator wrote down of who did what, and whether that is still what it wrote."""

from __future__ import annotations

import json as codec
import sys
from pathlib import Path
from typing import Annotated

import typer

from atoll.errors import ConfigError

__all__ = ["audit_log"]

audit_log = typer.Typer(help="Audit logs of coordinators: show them, check them.", no_args_is_help=True)

_Place = Annotated[str, typer.Argument(metavar="PLACE", help="A coordinator's directory, or the log itself.")]


def _found(place: str) -> Path:
    from atoll.network.auditlog import NAME

    path = Path(place) / NAME if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise ConfigError(f"there is no audit log {path}", hint="give the directory of a coordinator")
    return path


@audit_log.command()
def verify(
    place: _Place,
    noted: Annotated[
        str | None,
        typer.Option(
            "--head", metavar="SEQ:HASH", help="A head that was noted: what it covers must be there."
        ),
    ] = None,
) -> None:
    """Check that a log is what was written: exit code 0, or 1 with the line where it is not.

    Records that were cut off the end are seen only with --head: note the head that this shows, elsewhere.
    """
    from atoll.network.auditlog import Head, verify

    path = _found(place)
    verdict = verify(path, None if noted is None else Head.parse(noted))
    print(f"{path}: {'sound' if verdict.ok else 'NOT SOUND'}")
    print(f"records  {verdict.records}" + ("" if verdict.ok else " before the problem"))
    if not verdict.ok:
        print(f"problem  {verdict.problem}")
        raise typer.Exit(1)
    print(f"head     {verdict.head}")
    if noted is None:
        print(
            "Cut-off records at the end would not be seen: note the head elsewhere, and give it with --head."
        )


@audit_log.command()
def show(
    place: _Place,
    json: Annotated[bool, typer.Option("--json", help="The records, a line of JSON each.")] = False,
) -> None:
    """Print a log, a line a record: number, time (UTC), event, facts. Exit code 1 if it is not sound."""
    from atoll.network.auditlog import verify
    from atoll.network.chain import lines

    path = _found(place)
    for number, record in enumerate(lines(path), 1):
        if record is None:
            print(f"line {number} is not what was written", file=sys.stderr)
        elif json:
            said = {"seq": record.seq, "time": record.time, "event": record.event, "facts": record.facts}
            print(codec.dumps(said))
        else:  # as JSON: what nodes have said must not steer a terminal
            facts = " ".join(f"{_plain(key)}={codec.dumps(value)}" for key, value in record.facts.items())
            print(f"{record.seq:>6}  {record.time[:23]:<23}  {_plain(record.event):<12}  {facts}".rstrip())
    if not (verdict := verify(path)).ok:
        print(f"{path} is not sound: {verdict.problem}", file=sys.stderr)
        raise typer.Exit(1)


def _plain(text: str) -> str:
    return codec.dumps(text)[1:-1]
