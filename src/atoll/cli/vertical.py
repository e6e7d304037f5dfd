"""`atoll vertical`: one model of parties that have different columns."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from atoll.cli.given import Json, Quiet, Resume, Runs, Sets, WithSettings, check_file
from atoll.cli.notice import Notice

__all__ = ["vertical"]

vertical = typer.Typer(help="One model of parties that have different columns.", no_args_is_help=True)


@vertical.command(cls=WithSettings)
def run(
    file: Annotated[str | None, typer.Argument(metavar="[FILE.toml]", help="The run.")] = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
    resume: Resume = None,
    runs: Runs = None,
) -> None:
    """Play all parties of a run here, one after the other, from files that are all at hand."""
    from atoll.cli.parties import Wish, command

    check_file(file)
    _guarded(lambda notice: command(Wish(file, sets or [], resume, runs, json, quiet), notice), quiet)


@vertical.command()
def demo(json: Json = False, quiet: Quiet = False, runs: Runs = None) -> None:
    """Train on a small table that is divided between two parties (breast cancer, 569 rows)."""
    from atoll.cli.parties import Wish, demonstrate

    _guarded(lambda notice: demonstrate(Wish(None, [], None, runs, json, quiet), notice), quiet)


def _guarded(work: object, quiet: bool) -> None:
    notice = Notice(quiet)
    try:
        work(notice)  # type: ignore[operator]
    except KeyboardInterrupt:
        notice.clear()
        print("interrupted; atoll vertical run --resume last goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        notice.clear()
