"""`atoll audit`: attack a run's privacy, and say what was found."""

from __future__ import annotations

import json as texts
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import given
from atoll.cli.given import check_file
from atoll.cli.notice import Notice
from atoll.errors import ConfigError

if TYPE_CHECKING:
    from atoll.federation import Federation

__all__ = ["audit"]


def audit(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE.toml",
            help="A run as in atoll show, or settings: these are trained first.",
            autocompletion=given.runs,
        ),
    ] = "last",
    attack: Annotated[
        str, typer.Option("--attack", metavar="NAMES", help="Which attacks, with commas.")
    ] = "inversion,membership,canary",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting; wins over the file. Repeatable."),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(min=0, help="What the run claims, where it reports nothing itself.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR", help="Pictures go there; by default audit/ in the run."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    strict: Annotated[
        bool, typer.Option("--assert", help="Exit with 1 if an attack succeeded, for tests.")
    ] = False,
    runs: Annotated[str | None, typer.Option("--runs", metavar="DIR", help="Where to look for runs.")] = None,
) -> None:
    """Attack a run's privacy, to see what protects it.

    inversion reads samples off one client's update, membership tells training samples by their loss, canary counts
    made-up clients that the released sums give away. Success is proof of a leak; failure proves nothing.
    """
    check_file(name)
    notice = Notice(False)
    notice.say("loading PyTorch")
    try:
        from atoll import audit as room

        attacks = [each.strip() for each in attack.split(",") if each.strip()]
        if not attacks:
            raise ConfigError("--attack names no attack", hint=f"--attack {','.join(room.ATTACKS)}")
        for each in attacks:
            room.check(each)
        federation, folder = _federation(name, sets or [], runs, notice)
        found = room.audit(federation, attacks, epsilon=epsilon, tell=notice.say)
    finally:
        notice.clear()
    place = Path(out) if out is not None else None if folder is None else folder / "audit"
    written = [] if place is None else room.write(found, place)
    if folder is not None and out is None:
        written.append(_reported(folder))
    if json:
        print(texts.dumps(found.to_dict()))
    else:
        for line in [*room.lines(found), room.CAVEAT]:
            print(line)
    for path in written:
        print(path, file=sys.stderr if json else sys.stdout)
    if strict and found.leaks:
        raise typer.Exit(1)


def _reported(folder: Path) -> Path:
    """The run's page, with what was found."""
    from atoll.runs import report
    from atoll.runs.folder import RunFolder

    run, place = RunFolder(folder), folder / "report.html"
    report.write(place, run.name, [run.log().events], audits=[run.audit()])
    return place


def _federation(
    name: str, sets: list[str], runs: str | None, notice: Notice
) -> tuple[Federation, Path | None]:
    """The federation of a run, as far as it came, and its folder; or that of a file, which has not begun."""
    from atoll.cli.taken import taken
    from atoll.experiment import Experiment
    from atoll.runs.folder import RunFolder

    if Path(name).suffix == ".toml":
        return Experiment.read(name, [*sets, "runs=none"]).build(tell=notice.say), None
    folder = RunFolder.find(name, runs)
    return taken(folder, sets, notice.say), folder.path
