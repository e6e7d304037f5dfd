"""`atoll dash`: the live page of a directory of runs."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from atoll.errors import ConfigError

__all__ = ["dash", "seen_here"]


def seen_here() -> bool:
    """Whether somebody sits in front of this machine, who would see a browser."""
    return sys.stdout.isatty() and not os.environ.get("SSH_CONNECTION") and not os.environ.get("CI")


def dash(
    runs: Annotated[
        str | None,
        typer.Argument(metavar="RUNS", help="A directory of runs, or one run. ATOLL_RUNS, or runs."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=65535, help="By default 8470, or a free one.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Where to listen; others can look unless it is this machine."),
    ] = "127.0.0.1",
    open: Annotated[
        bool | None, typer.Option("--open/--no-open", help="Open a browser. By default in a terminal.")
    ] = None,
) -> None:
    """Show runs on a page in the browser, as they are played. Ctrl-C ends it; the runs go on."""
    from atoll.runs.folder import RunFolder, default_place
    from atoll.runs.serve import PORT, serve

    place = Path(runs) if runs is not None else default_place()
    if runs is not None and not place.is_dir():
        try:
            place = RunFolder.find(runs).path
        except ConfigError as error:
            raise ConfigError(f"{runs} is no directory, and {error.message}", hint=error.hint) from None

    def ready(url: str) -> None:
        print(f"runs in {place} are shown on {url}", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print("everyone who reaches this address can read these runs", file=sys.stderr, flush=True)
        if open if open is not None else seen_here():
            webbrowser.open(url)

    if port is not None:
        serve(place, host, port, ready)
        return
    try:
        serve(place, host, PORT, ready)
    except ConfigError:
        serve(place, host, 0, ready)
