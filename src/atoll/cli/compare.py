"""`atoll compare` and `atoll report`: runs beside each other, in the terminal and as a page."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import given
from atoll.errors import ConfigError

if TYPE_CHECKING:
    from atoll.runs.folder import RunFolder

__all__ = ["compare", "report"]

_RUNS = "Runs as in atoll show, or directories of runs (such as a sweep's)."


def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help=_RUNS, autocompletion=given.runs)],
    target: Annotated[
        str | None,
        typer.Option(metavar="MEASURE:VALUE", help="Cost up to there; by default the runs' own target."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="The figures for a spreadsheet, on stdout.")] = False,
    runs: Annotated[str | None, typer.Option("--runs", metavar="DIR", help="Where to look.")] = None,
) -> None:
    """Compare runs; those with other seeds become one line."""
    from atoll.runs.compare import Comparison
    from atoll.runs.listing import resolve

    if json and csv:
        raise ConfigError("--json and --csv write to the same place", hint="give one of them")
    folders = resolve(names, runs)
    comparison = Comparison.of(folders, target)
    for told in _unfinished(folders):
        print(told, file=sys.stderr)
    if csv:
        sys.stdout.write(comparison.csv().replace("\r\n", "\n"))
        return
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.encode(comparison.to_dict()).decode() + "\n")
        return
    from atoll.cli.runs import console
    from atoll.runs.compare_view import view

    console().print(view(comparison))


def report(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help=_RUNS, autocompletion=given.runs)],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE.html",
            help="By default report.html in the run, or comparison.html here.",
        ),
    ] = None,
    figures: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write figures for papers there, as SVG and PNG.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="MEASURE:VALUE", help="Of a comparison, as in atoll compare.")
    ] = None,
    runs: Annotated[str | None, typer.Option("--runs", metavar="DIR", help="Where to look.")] = None,
) -> None:
    """Write a page about a run, or about how several compare.

    It is one file, and asks for nothing from elsewhere.
    """
    from atoll.runs.compare import Comparison
    from atoll.runs.listing import resolve

    folders = resolve(names, runs)
    for told in _unfinished(folders) if len(folders) > 1 else ():
        print(told, file=sys.stderr)
    written: list[Path] = []
    if len(folders) == 1:
        from atoll.runs import report as page

        events = folders[0].log().events
        place = Path(output) if output is not None else folders[0].path / "report.html"
        page.write(place, folders[0].name, [events], audits=[folders[0].audit()])
        if figures is not None:
            from atoll.runs.figures import write

            written = write(events, figures)
    else:
        comparison = Comparison.of(folders, target)
        place = comparison.report(output or "comparison.html")
        if figures is not None:
            written = comparison.figures(figures)
    for path in (place, *written):
        print(path)


def _unfinished(folders: Sequence[RunFolder]) -> Iterator[str]:
    """A line for every run that did not come to its end: what is compared is how far it came.

    Raises ConfigError where none was ever evaluated.
    """
    from atoll.runs.listing import Entry

    entries = [Entry.of(folder) for folder in folders]
    if not any(entry.story.final for entry in entries):
        states = ", ".join(f"{entry.folder.name} ({entry.status})" for entry in entries)
        raise ConfigError(
            f"no round was evaluated in {states}: there is nothing to compare",
            hint=f"atoll show {entries[0].folder.name} tells how it ended",
        )
    for entry in entries:
        if entry.status != "finished":
            error = (entry.story.last("error") or {}).get("message")
            why = f": {error}" if error and entry.status == "failed" else ""
            rounds = f"{entry.round} of {entry.story.planned or '?'} rounds"
            yield f"{entry.folder.name}: {entry.status} after {rounds}{why}"
