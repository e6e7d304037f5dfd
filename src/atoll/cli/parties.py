"""`atoll vertical`: runs between parties, shown as they go, and summed up in the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from atoll.cli.events import JsonLines
from atoll.cli.explain import explain
from atoll.cli.notice import Notice
from atoll.cli.run import terminable
from atoll.errors import ConfigError
from atoll.runs.events import Event, encode
from atoll.runs.events.kinds import Error
from atoll.runs.folder import RunFolder
from atoll.runs.readers import Reader
from atoll.vertical.fitting import Fitted, play_one
from atoll.vertical.fitting import run as play
from atoll.vertical.settings import Vertical
from atoll.words import bytes_text, duration_text, value_text

__all__ = ["Wish", "command", "demonstrate", "summary", "take_part"]


@dataclass(frozen=True)
class Wish:
    """What the command line asks for, beside the settings."""

    file: str | None
    sets: list[str]
    resume: str | None = None
    runs: str | None = None
    json: bool = False
    quiet: bool = False


class Steps(Reader):
    """Prints a heading, and a line for every tree or epoch."""

    name = "steps"

    def __init__(self, console: Console) -> None:
        self.console = console

    def event(self, event: Event) -> None:
        kind = event["event"]
        if kind == "start":
            self._print(f"{event['method']} between {event['engine']}", "bold")
        elif kind == "resume":
            self._print(f"goes on after step {event['round']}", "bold")
        elif kind == "round":
            overall = (event.get("evaluation") or {}).get("overall", {})
            shown = {"loss": event.get("loss"), **overall}
            parts = [f"{event['round']:>5}"]
            parts += [
                f"{name} {value_text(name, value)}" for name, value in shown.items() if value is not None
            ]
            parts += [bytes_text(event["bytes_up"]), duration_text(event["seconds"])]
            self._print("   ".join(parts), "")

    def _print(self, text: str, style: str) -> None:
        self.console.print(text, style=style, markup=False, soft_wrap=True)


def command(wish: Wish, notice: Notice) -> None:
    """Play what the file and the settings describe, or go on with a run."""
    _played(wish, notice, lambda: _plan(wish))


def demonstrate(wish: Wish, notice: Notice) -> None:
    """The demonstration."""
    from atoll.vertical.demo import plan

    _played(wish, notice, plan)


def take_part(wish: Wish, name: str, data: str | None, keys: str | None, plain: bool, notice: Notice) -> None:
    """Take part as one of the parties."""

    def work(plan: Vertical, readers: list[Reader]) -> Any:
        if plain == (keys is not None):
            raise ConfigError(
                "say --keys DIR, where this party's certificate is, or --plain on one machine",
                hint="atoll ca invite NAME --role party, and atoll ca enrol, make one",
            )
        if name not in plan.names:
            raise ConfigError(f"--as {name}: the parties are {', '.join(plan.names)}")
        secured = None
        if keys is not None:
            from atoll.network.between import secured as contexts

            secured = contexts(Path(keys), name)
        return play_one(plan, name, data, secured, readers, wish.resume)

    _played(wish, notice, lambda: Vertical.read(wish.file, wish.sets), work)


def _played(
    wish: Wish,
    notice: Notice,
    made: Callable[[], Vertical],
    work: Callable[[Vertical, list[Reader]], Fitted] | None = None,
) -> None:
    console = Console(stderr=wish.json, highlight=False)
    readers: list[Reader] = [] if wish.quiet else [Steps(console)]
    readers += [JsonLines()] if wish.json else []
    try:
        with terminable():
            plan = made()
            if wish.runs is not None:
                plan = replace(plan, runs=None if wish.runs == "none" else wish.runs)
            notice.say("reading tables")
            fitted = play(plan, readers, wish.resume) if work is None else work(plan, readers)
    except Exception as error:
        notice.clear()
        if wish.json:
            message, hint, code = explain(error)
            event = Error(kind=type(error).__name__, message=message, hint=hint, exit_code=code, round=0)
            sys.stdout.write(encode(event).decode())
            sys.stdout.flush()
        raise
    notice.clear()
    console.print(summary(fitted), markup=False, soft_wrap=True)
    if fitted.folder is not None:
        console.print(f"{fitted.folder.path}{os.sep}report.html", markup=False, soft_wrap=True, style="dim")


def _plan(wish: Wish) -> Vertical:
    if wish.resume is None:
        return Vertical.read(wish.file, wish.sets)
    if wish.file is not None:
        raise ConfigError(
            f"a run is resumed with its own settings, and {wish.file} was given too", hint="leave it out"
        )
    folder = RunFolder.find(wish.resume, wish.runs)
    return Vertical.read(folder.path / "config.toml", wish.sets)


def summary(fitted: Fitted) -> str:
    """What came of a run, and what was said."""
    found: Mapping[str, Any] = fitted.figures
    lines = [""]
    if "common" in found:
        lines += [f"{found['common']:,} rows in common"]
    for name in ("train", "test"):
        if name in found:
            shown = [f"{key} {value_text(key, value)}" for key, value in found[name].items()]
            lines += [f"{name:5}  " + ", ".join(shown)]
    lines += ["", "who said what, and what its receiver can learn from it"]
    for count in fitted.transcript.counts():
        what = f"{count.messages:,} x {count.kind}, {bytes_text(count.nbytes)}"
        what += f", {count.ciphertexts:,} ciphertexts under {count.under}" if count.ciphertexts else ", open"
        lines += [f"  {count.sender} -> {count.receiver}: {what}", f"      {count.tells}"]
    return "\n".join(lines)
