"""`atoll ls`, `show`, `log` and `rm`: runs that were made."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli import given
from atoll.errors import ConfigError, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from atoll.runs.folder import RunFolder

__all__ = ["console", "log", "ls", "rm", "show"]

_PAUSE = 0.3  # seconds between looks at a run that is being followed
_RUN = "A run's folder, its name (or how it begins or ends), or last."


def console() -> Console:
    """Where tables go: as wide as the terminal, or wide enough for a log."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 140
    return Console(width=width, highlight=False)


def ls(
    directory: Annotated[
        str | None, typer.Argument(metavar="RUNS_DIR", help="By default ATOLL_RUNS, or runs.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="A JSON line a run.")] = False,
) -> None:
    """List the runs, the newest last."""
    from atoll.runs.folder import default_place
    from atoll.runs.listing import entries

    place = default_place() if directory is None else Path(directory)
    if directory is not None and not place.is_dir():
        raise ConfigError(f"there is no directory {place}", hint="give one that holds runs")
    found = entries(place)
    if json:
        for entry in found:
            _json_line(entry.to_dict())
    elif found:
        from atoll.cli.runs_view import table

        console().print(table(found))
    else:
        print(f"there are no runs in {place}; atoll run makes one")


def show(
    run: Annotated[str, typer.Argument(help=_RUN, autocompletion=given.runs)] = "last",
    runs: Annotated[str | None, typer.Option("--runs", metavar="DIR", help="Where to look.")] = None,
) -> None:
    """Show a run: what it was, how it went, how to go on with it."""
    from atoll.cli.runs_view import card
    from atoll.runs.folder import RunFolder
    from atoll.runs.listing import Entry

    console().print(card(Entry.of(RunFolder.find(run, runs))), soft_wrap=False)


def log(
    run: Annotated[str, typer.Argument(help=_RUN, autocompletion=given.runs)] = "last",
    runs: Annotated[str | None, typer.Option("--runs", metavar="DIR", help="Where to look.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as long as the run does.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The events as they are, a JSON line each.")] = False,
) -> None:
    """Print what happened in a run, a line an event."""
    from atoll.cli.runs_view import line
    from atoll.runs import events
    from atoll.runs.folder import RunFolder

    folder = RunFolder.find(run, runs)
    folder.log()  # says it if there is nothing to read
    at = 0
    try:
        while True:
            going = folder.held()  # asked first: what it wrote before it ended is read below
            for found, end in events.follow(folder.events_file, at):
                at = end
                if found is None:
                    print("a damaged line", file=sys.stderr)
                elif json:
                    _json_line(found)
                elif text := line(found):
                    print(text)
            sys.stdout.flush()
            if not (follow and going):
                return
            time.sleep(_PAUSE)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN", help="Runs as in atoll show, or folders of sweeps.", autocompletion=given.runs
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    runs: Annotated[str | None, typer.Option("--runs", metavar="DIR", help="Where to look.")] = None,
) -> None:
    """Delete runs with all their files."""
    folders = _doomed(names, runs)
    for folder in folders:
        if folder.held() or any(each.held() for each in folder.all(folder.path)):
            raise RunError(f"{folder.path} is still running; nothing was deleted", hint="stop it first")
    shown = ", ".join(str(folder.path) for folder in folders)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"nobody to ask whether to delete {shown}", hint="--yes deletes without asking")
        if not typer.confirm(f"delete {shown}?", err=True):
            raise typer.Exit(1)
    for folder in folders:
        folder.remove()
        print(f"deleted {folder.path}")


def _doomed(names: list[str], runs: str | None) -> list[RunFolder]:
    """The folders to delete. A directory that merely holds runs is no folder of ours: it is not deleted."""
    from atoll.runs.folder import RunFolder, default_place

    place = default_place() if runs is None else Path(runs)
    found: dict[Path, RunFolder] = {}
    for name in names:
        sweep = next((path for path in (Path(name), place / name) if (path / "sweep.json").is_file()), None)
        folder = RunFolder(sweep) if sweep is not None else RunFolder.find(name, place)
        found.setdefault(folder.path.resolve(), folder)
    return list(found.values())


def _json_line(value: dict[str, Any]) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
