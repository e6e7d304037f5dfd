"""`atoll vertical`: one model of parties that have different columns."""

from __future__ import annotations

import sys
from collections.abc import Callable
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


@vertical.command(cls=WithSettings)
def join(
    file: Annotated[str, typer.Argument(metavar="FILE.toml", help="The run, the same at all parties.")],
    name: Annotated[str, typer.Option("--as", metavar="PARTY", help="Which of its parties this is.")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="This party's table; it stays here.")
    ] = None,
    keys: Annotated[
        str | None, typer.Option("--keys", metavar="DIR", help="Keys and certificate, from `atoll ca enrol`.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without TLS; on this machine only.")] = False,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
    resume: Resume = None,
    runs: Runs = None,
) -> None:
    """Take part in a run as one of its parties, each in a process of its own, over mutual TLS."""
    from atoll.cli.parties import Wish, take_part

    check_file(file)
    wish = Wish(file, sets or [], resume, runs, json, quiet)
    _guarded(lambda notice: take_part(wish, name, data, keys, plain, notice), quiet)


@vertical.command()
def predict(
    run: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...", help="The run of the model, or those of all parties; last by default."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--as", metavar="PARTY", help="Which party this is, of several processes.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="With --as: this party's rows.")
    ] = None,
    keys: Annotated[
        str | None, typer.Option("--keys", metavar="DIR", help="With --as: keys and certificate.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without TLS; on this machine only.")] = False,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="party.NAME.data=FILE, or another address."),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Write there; else to the terminal.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="A JSON object a row, in the place of CSV.")] = False,
    quiet: Quiet = False,
    runs: Runs = None,
) -> None:
    """Predict the rows that all parties have, with the halves of a model that a run has left.

    Without --as all parties are played here; with it every party says this command with its own half.
    """
    from atoll.cli.parties import Asked
    from atoll.cli.parties import predict as command

    asked = Asked(run or ["last"], name, data, keys, plain, sets or [], out, json, quiet, runs)
    _guarded(lambda notice: command(asked, notice), quiet, "nothing was written")


def _guarded(
    work: Callable[[Notice], None],
    quiet: bool,
    left: str = "atoll vertical run --resume last goes on",
) -> None:
    notice = Notice(quiet)
    try:
        work(notice)
    except KeyboardInterrupt:
        notice.clear()
        print(f"interrupted; {left}", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        notice.clear()
