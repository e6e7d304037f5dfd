"""`atoll run`: build the experiment, show it as it runs, and end with a summary or with what went wrong."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from safetensors.torch import save_model

from atoll.cli.events import Events, emit
from atoll.cli.main import explain
from atoll.errors import ConfigError
from atoll.experiment import Experiment
from atoll.federation import Callback, Federation
from atoll.results import Run
from atoll.summary import result_view
from atoll.table import Lines, LiveTable

__all__ = ["command"]


def command(file: str | None, sets: list[str], *, json: bool, quiet: bool, save: str | None) -> None:
    """Run what the file and the settings describe."""
    console = _console(to_stderr=json)
    federation: Federation | None = None
    experiment: Experiment | None = None
    display: LiveTable | Lines | None = None
    try:
        with _terminable():
            _check_place(save)
            experiment = Experiment.read(file, sets)
            federation = experiment.build()
            callbacks: list[Callback] = []
            if not quiet:
                display = _display(console, experiment, federation)
                callbacks.append(display)
            if json:
                callbacks.append(Events(experiment))
            federation.callbacks = callbacks
            run = experiment.named(federation.fit())
        console.print(result_view(run))
        _save(run, save, console)
        if json:
            emit("result", run.to_dict())
    except (Exception, KeyboardInterrupt, _Terminated) as error:
        if display is not None:
            display.close()
        so_far = _so_far(experiment, federation)
        if so_far is not None and not isinstance(error, (ConfigError, OSError)):
            if so_far.rounds:
                console.print(result_view(so_far))
            _save(so_far, save, console)
        message, hint, code = _explain(error, so_far)
        if json:
            emit("error", {"kind": _kind(error), "message": message, "hint": hint, "exit_code": code})
        if isinstance(error, Exception):
            raise
        print(message, file=sys.stderr)
        raise typer.Exit(code) from None


# --- the screen ---------------------------------------------------------------------------------------------


def _console(*, to_stderr: bool) -> Console:
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else 100
    return Console(file=stream, width=width, highlight=False)


def _display(console: Console, experiment: Experiment, federation: Federation) -> LiveTable | Lines:
    live = console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")
    size = sum(p.numel() for p in federation.task.module.parameters())
    clients = f"{federation.cohort} of {len(federation.data):,} clients a round"
    title = f"{experiment.method} on {experiment.data}, {federation.data.partition}, {clients}"
    settings = [(key, experiment.settings.get(key)) for key in ("lr", "epochs", "steps", "batch_size")]
    shown = [f"{key} {value:g}" for key, value in settings if value is not None]
    detail = ", ".join([*shown, f"{size:,} parameters on {federation.device}"])
    return LiveTable(console, title, detail) if live else Lines(console, title, detail)


# --- the end ------------------------------------------------------------------------------------------------


class _Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM is an exception, so that the run is put away in order."""

    def stop(*_: Any) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _so_far(experiment: Experiment | None, federation: Federation | None) -> Run | None:
    """What was played before something went wrong; its model is the last one that was committed."""
    if experiment is None or federation is None or not hasattr(federation, "history"):
        return None
    return experiment.named(federation.run())


def _explain(error: BaseException, so_far: Run | None) -> tuple[str, str | None, int]:
    if isinstance(error, (KeyboardInterrupt, _Terminated)):
        when = (
            f"after round {len(so_far.rounds)}"
            if so_far and so_far.rounds
            else "before the first round was over"
        )
        word, code = ("interrupted", 130) if isinstance(error, KeyboardInterrupt) else ("terminated", 143)
        return f"{word} {when}", None, code
    return explain(error)


def _kind(error: BaseException) -> str:
    names = {KeyboardInterrupt: "Interrupted", _Terminated: "Terminated"}
    return names.get(type(error), type(error).__name__)


def _check_place(save: str | None) -> None:
    """A place that cannot be written to is worth knowing before the run."""
    if save is None:
        return
    folder = Path(save).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(save).is_dir():
        raise ConfigError(
            f"--save {save}: {folder} is no folder to write to", hint="name a file in an existing folder"
        )


def _save(run: Run, save: str | None, console: Console) -> None:
    if save is None:
        return
    about = {
        "method": run.method,
        "data": run.data,
        "partition": run.partition,
        "rounds": str(len(run.rounds)),
    }
    temporary = f"{save}.part"
    save_model(run.model, temporary, metadata=about)
    os.replace(temporary, save)
    console.print(f"model saved to {save}", markup=False, soft_wrap=True)
