"""`atoll train`: one model, several workers; shown as it goes, and summed up in the end."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from atoll.cli.events import JsonLines
from atoll.cli.explain import explain
from atoll.cli.notice import Notice
from atoll.cli.run import check_place, terminable
from atoll.distributed.settings import Training
from atoll.distributed.showing import Steps, summary
from atoll.distributed.training import Trained, prepare, start
from atoll.errors import ConfigError, Terminated
from atoll.runs.events import encode
from atoll.runs.events.kinds import Error
from atoll.runs.folder import RunFolder
from atoll.runs.readers import Reader

__all__ = ["Wish", "command"]


@dataclass(frozen=True)
class Wish:
    """What the command line asks for, beside the settings."""

    file: str | None
    sets: list[str]
    workers: int | None = None
    resume: str | None = None
    runs: str | None = None
    save: str | None = None
    restarts: int | None = None
    json: bool = False
    quiet: bool = False


def command(wish: Wish, notice: Notice) -> None:
    """Train what the file and the settings describe, or go on with a run."""
    first = os.environ.get("RANK", "0") == "0"
    console = Console(stderr=wish.json, highlight=False, quiet=not first)
    readers: list[Reader] = [] if wish.quiet or not first else [Steps(console)]
    readers += [JsonLines()] if wish.json and first else []
    try:
        with terminable():
            check_place(wish.save)
            training = _training(wish)
            notice.say(f"loading {training.data}")
            job = prepare(training)
            notice.clear()
            trained = start(job, wish.resume, readers)
    except (Exception, KeyboardInterrupt, Terminated) as error:
        notice.clear()
        if wish.json and first:
            message, hint, code = (
                explain(error) if isinstance(error, Exception) else ("interrupted", None, 130)
            )
            event = Error(kind=type(error).__name__, message=message, hint=hint, exit_code=code, round=0)
            sys.stdout.write(encode(event).decode())
            sys.stdout.flush()
        if isinstance(error, Exception):
            raise
        print("interrupted; atoll train --resume last goes on", file=sys.stderr)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 143) from None
    if first:
        _tell(trained, wish, console)


def _training(wish: Wish) -> Training:
    given: dict[str, Any] = {"workers": wish.workers, "runs": wish.runs, "restarts": wish.restarts}
    given = {key: value for key, value in given.items() if value is not None}
    if wish.resume is None:
        return Training.read(wish.file, wish.sets, **given)
    if wish.file is not None:
        raise ConfigError(
            f"a run is resumed with its own settings, and {wish.file} was given too", hint="leave it out"
        )
    folder = RunFolder.find(wish.resume, wish.runs)
    return Training.read(folder.path / "config.toml", wish.sets, **given)


def _tell(trained: Trained, wish: Wish, console: Console) -> None:
    console.print(summary(trained), markup=False, soft_wrap=True)
    if wish.save is not None and trained.folder is not None:
        shutil.copyfile(trained.folder.path / "model.safetensors", wish.save)
    elif wish.save is not None:
        trained.save(Path(wish.save))
    if wish.save is not None:
        console.print(f"model saved to {wish.save}", markup=False, soft_wrap=True)
    if trained.folder is not None:
        console.print(f"{trained.folder.path}{os.sep}report.html", markup=False, soft_wrap=True, style="dim")
