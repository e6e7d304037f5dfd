"""`atoll run`: build the experiment, show it as it runs, and end with a summary or with what went wrong."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import typer
from rich.console import Console

from atoll.cli.dash import seen_here
from atoll.cli.events import JsonLines
from atoll.cli.explain import explain
from atoll.cli.notice import Notice
from atoll.errors import ConfigError, DivergedError, Terminated
from atoll.experiment import prepare
from atoll.federation import Federation
from atoll.runs.events import encode
from atoll.runs.events.kinds import Error
from atoll.runs.readers import Reader
from atoll.show.progress import on_console
from atoll.show.summary import result_view

__all__ = ["Wish", "check_place", "command", "terminable"]


@dataclass(frozen=True)
class Wish:
    """What the command line asks for, beside the settings."""

    file: str | None
    sets: list[str]
    resume: str | None = None
    runs: str | None = None
    save: str | None = None
    json: bool = False
    quiet: bool = False
    dash: bool = False


def command(wish: Wish, notice: Notice) -> None:
    """Run what the file and the settings describe, or go on with a run."""
    console = _console(to_stderr=wish.json)
    federation: Federation | None = None
    try:
        with terminable(), contextlib.ExitStack() as open_things:
            check_place(wish.save)
            federation = build(wish, notice)
            notice.clear()
            if not wish.quiet:
                federation.keeper.session.log.append(on_console(console))
            if wish.json:
                federation.keeper.session.log.append(JsonLines())
            if wish.dash:
                _show_page(wish, federation, open_things, console)
            run = federation.fit(progress=False)
        console.print(result_view(run))
        if wish.save is not None:
            run.save(wish.save)
            console.print(f"model saved to {wish.save}", markup=False, soft_wrap=True)
        if run.folder is not None:
            console.print(
                f"\n{run.folder.path}{os.sep}report.html", markup=False, soft_wrap=True, style="dim"
            )
    except (Exception, KeyboardInterrupt, Terminated) as error:
        notice.clear()
        _tell(error, federation, wish, console)
        if isinstance(error, Exception):
            raise
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 143) from None


def build(wish: Wish, notice: Notice) -> Federation:
    """The federation that is wished for."""
    keywords: dict[str, Any] = {} if wish.runs is None else {"runs": wish.runs}
    return prepare(wish.file, wish.sets, wish.resume, tell=notice.say, **keywords)


def _tell(error: BaseException, federation: Federation | None, wish: Wish, console: Console) -> None:
    """What was played before something went wrong, and how to go on."""
    started = federation is not None and (federation.folder is not None or federation.history)
    if federation is not None and started and not isinstance(error, (ConfigError, OSError)):
        run = federation.run()
        if run.rounds:
            console.print(result_view(run))
        if wish.save is not None:
            run.save(wish.save)
            console.print(f"model saved to {wish.save}", markup=False, soft_wrap=True)
    elif wish.json:  # nothing has been written down yet
        message, hint, code = explain(error) if isinstance(error, Exception) else ("interrupted", None, 130)
        event = Error(kind=type(error).__name__, message=message, hint=hint, exit_code=code, round=0)
        sys.stdout.write(encode(event).decode())
        sys.stdout.flush()
    if not isinstance(error, Exception):
        word = "interrupted" if isinstance(error, KeyboardInterrupt) else "terminated"
        done = federation.number if federation is not None else 0
        print(
            f"{word} {f'after round {done}' if done else 'before the first round was over'}", file=sys.stderr
        )
    hopeless = isinstance(error, DivergedError)
    if (
        started
        and federation is not None
        and federation.folder
        and federation.keeper.can_resume
        and not hopeless
    ):
        path = shlex.quote(str(federation.folder.path))
        print(f"go on with: atoll run --resume {path}", file=sys.stderr)


def _show_page(wish: Wish, federation: Federation, stack: contextlib.ExitStack, console: Console) -> None:
    """Start the live page, for as long as the run lasts, and open it at the run once that has a folder."""
    from atoll.runs.serve import PORT, Dash

    if federation.keeper.session.runs is None and federation.folder is None:
        raise ConfigError("--dash reads a run folder, and runs is none", hint="leave --set runs=none out")
    place = federation.folder.path.parent if federation.folder is not None else federation.keeper.session.runs
    assert place is not None
    place.mkdir(parents=True, exist_ok=True)
    try:
        page = Dash(place, port=PORT)
    except ConfigError:  # another page is there
        page = Dash(place)
    stack.callback(page.close)
    federation.keeper.session.log.insert(0, _Opener(page.url, console))


class _Opener(Reader):
    """Says where the page shows the run, and opens it where somebody sits in front of this machine."""

    name = "--dash"

    def __init__(self, url: str, console: Console) -> None:
        self.url, self.console = url, console

    def open(self, folder: Path | None) -> None:
        assert folder is not None
        url = f"{self.url}#run={quote(folder.name, safe='')}"
        self.console.print(f"live page: {url}", markup=False, soft_wrap=True)
        if seen_here():
            webbrowser.open(url)


# --- the screen ---------------------------------------------------------------------------------------------


def _console(*, to_stderr: bool) -> Console:
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else 100
    return Console(file=stream, width=width, highlight=False)


# --- the end ------------------------------------------------------------------------------------------------


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM is an exception, so that the run is put away in order."""

    def stop(*_: Any) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_place(save: str | None) -> None:
    """A place that cannot be written to is worth knowing before the run."""
    if save is None:
        return
    folder = Path(save).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(save).is_dir():
        raise ConfigError(
            f"--save {save}: {folder} is no folder to write to", hint="name a file in an existing folder"
        )
