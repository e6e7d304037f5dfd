"""`atoll sweep`: a grid of settings, its runs in a table that follows them, and how they compare."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.given import check_file
from atoll.errors import Terminated

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["sweep"]


def sweep(
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE.toml", help="Settings that all runs have, as in atoll run."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="KEY=VALUE,VALUE",
            help="Values to combine with those of the other grids. Repeatable.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of every combination: its seed, and those after it.")
    ] = 1,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting of all runs. Repeatable."),
    ] = None,
    runs: Annotated[
        str | None, typer.Option("--runs", metavar="DIR", help="Where the sweep's directory goes.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The directory is sweep-NAME; by default it follows from the settings.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once; by default one a core.")] = None,
    target: Annotated[
        str | None, typer.Option(metavar="MEASURE:VALUE", help="Compare the cost up to there.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Run local, fedavg and fedavg-ft too, in the same settings.")
    ] = False,
) -> None:
    """Run every combination of settings, and compare them.

    Of several methods (--grid method=ditto,apfl) each takes the settings that it knows.
    The same command again skips what is finished and goes on with what was interrupted.
    """
    check_file(file)
    from atoll.cli.runs import console
    from atoll.cli.sweep_view import Board
    from atoll.runs.compare_view import view
    from atoll.trials.points import parse_grid
    from atoll.trials.sweeping import prepare

    ready = prepare(
        file, sets or [], parse_grid(grid or []),
        seeds=seeds, name=name, runs=runs, jobs=jobs, target=target, baselines=baselines,
    )  # fmt: skip
    again = _again(file, grid or [], seeds, sets or [], baselines, runs, name, jobs, target)
    board = Board(console(), ready)
    try:
        with _terminable():
            comparison = ready.play(board.update)
    except (KeyboardInterrupt, Terminated) as error:
        board.close()
        done = sum(trial.finished for trial in ready.trials)
        word, code = ("interrupted", 130) if isinstance(error, KeyboardInterrupt) else ("terminated", 143)
        print(
            f"{word}: {done} of {len(ready.trials)} runs are finished\ngo on with: {again}", file=sys.stderr
        )
        raise typer.Exit(code) from None
    finally:
        board.close()
    out = console()
    out.print(view(comparison))
    out.print(f"\n{ready.folder.path}{os.sep}comparison.html", markup=False, soft_wrap=True, style="dim")
    if comparison.failed:
        count, whole = len(comparison.failed), len(ready.trials)
        print(f"{count} of {whole} runs failed; to try them again: {again}", file=sys.stderr)
        raise typer.Exit(1)


def _again(
    file: str | None, grid: list[str], seeds: int, sets: list[str], baselines: bool, *rest: Any
) -> str:
    """The command line that goes on with a sweep."""
    words = ["atoll", "sweep", *([file] if file else [])]
    words += [word for text in grid for word in ("--grid", text)]
    words += ["--seeds", str(seeds)] if seeds > 1 else []
    words += [word for text in sets for word in ("--set", text)]
    words += ["--baselines"] if baselines else []
    for option, value in zip(("--runs", "--name", "--jobs", "--target"), rest, strict=True):
        words += [option, str(value)] if value is not None else []
    return shlex.join(words)


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM is an exception, so that the runs are stopped in order."""

    def stop(*_: Any) -> None:
        raise Terminated

    try:
        before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread takes signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
