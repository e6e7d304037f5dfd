"""`atoll vertical`: runs between parties, shown as they go, and summed up in the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from atoll.cli.events import JsonLines
from atoll.cli.explain import explain
from atoll.cli.notice import Notice
from atoll.cli.predictions import Row, write
from atoll.cli.run import terminable
from atoll.errors import ConfigError
from atoll.parties import Transcript
from atoll.parties.framed import Secured
from atoll.runs.events import Event, encode
from atoll.runs.events.kinds import Error, Features
from atoll.runs.folder import RunFolder
from atoll.runs.readers import Reader
from atoll.vertical.fitting import Fitted, play_one
from atoll.vertical.fitting import run as play
from atoll.vertical.predicting import Predicted
from atoll.vertical.settings import Vertical
from atoll.vertical.stored import Stored
from atoll.words import bytes_text, duration_text, value_text

__all__ = ["Asked", "Wish", "command", "demonstrate", "predict", "summary", "take_part"]


_SHOWN = 20  # columns of a party


@dataclass(frozen=True)
class Wish:
    """What the command line asks for, beside the settings."""

    file: str | None
    sets: list[str]
    resume: str | None = None
    runs: str | None = None
    json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Asked:
    """What `atoll vertical predict` is told."""

    places: list[str]
    name: str | None = None
    data: str | None = None
    keys: str | None = None
    plain: bool = False
    sets: list[str] = field(default_factory=list)
    out: str | None = None
    json: bool = False
    quiet: bool = False
    runs: str | None = None


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
        return play_one(plan, name, data, _secured(plan, name, keys, plain), readers, wish.resume)

    _played(wish, notice, lambda: Vertical.read(wish.file, wish.sets), work)


def predict(asked: Asked, notice: Notice) -> None:
    """Predict with a stored model: all parties here, or one of them."""
    console = Console(stderr=True, highlight=False)
    if asked.name is None and (asked.data or asked.keys or asked.plain):
        raise ConfigError(
            "--data, --keys and --plain are for one party of several processes",
            hint="say which with --as; else --set party.host.data=FILE names tables",
        )
    sets, transcript = list(asked.sets), Transcript()
    if asked.data is not None:
        sets.append(f"party.{asked.name}.data={asked.data}")
    with terminable():
        stored = Stored.read(asked.places, asked.runs, sets)
        if asked.name is None:
            notice.say("reading tables")
            found = stored.predict(transcript=transcript)
        else:
            secured = _secured(stored.plan, asked.name, asked.keys, asked.plain)
            notice.say("waiting for the other parties")
            found = stored.take_part(asked.name, secured, transcript)
    notice.clear()
    if asked.name in (None, "guest"):
        write(_rows(found), "id" if found.ids else "row", asked.json, asked.out)
    if not asked.quiet:
        console.print("\n".join(_audit(transcript)), markup=False, soft_wrap=True)


def _rows(found: Predicted) -> list[Row]:
    """By ids, or by numbers from 1 in the order of the host's table."""
    names: Sequence[int | str] = found.ids or range(1, len(found.shares) + 1)
    if found.shares.ndim == 1:
        return [(name, float(value), {}) for name, value in zip(names, found.shares, strict=True)]
    return [
        (name, found.labels[int(shares.argmax())], dict(zip(found.labels, map(float, shares), strict=True)))
        for name, shares in zip(names, found.shares, strict=True)
    ]


def _secured(plan: Vertical, name: str, keys: str | None, plain: bool) -> Secured | None:
    """A party's TLS; None in plain text."""
    if plain == (keys is not None):
        raise ConfigError(
            "say --keys DIR, where this party's certificate is, or --plain on one machine",
            hint="atoll ca invite NAME --role party, and atoll ca enrol, make one",
        )
    if name not in plan.names:
        raise ConfigError(f"--as {name}: the parties are {', '.join(plan.names)}")
    if keys is None:
        return None
    from atoll.network.between import secured

    return secured(Path(keys), name)


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
    for known in found.get("features", ()):
        lines += ["", *_known(known)]
    return "\n".join([*lines, "", *_audit(fitted.transcript)])


def _known(known: Features) -> list[str]:
    """What a party knows of columns, those with the largest first figures at the top."""
    names = list(known.figures)
    order = list(range(len(known.columns)))
    if names:
        order.sort(key=lambda at: -abs(known.figures[names[0]][at] or 0.0))
    width = max(map(len, known.columns), default=0)
    lines = [f"what {known.party} knows of columns: {', '.join(names)}"]
    for at in order[:_SHOWN]:
        told = [known.figures[name][at] for name in names]
        values = "  ".join("infinite" if each is None else f"{each:10.4g}" for each in told)
        lines.append(f"  {known.columns[at]:{width}}  {values}")
    if len(order) > _SHOWN:
        lines.append(f"  and {len(order) - _SHOWN} more")
    return lines


def _audit(transcript: Transcript) -> list[str]:
    lines = ["who said what, and what its receiver can learn from it"]
    for count in transcript.counts():
        what = f"{count.messages:,} x {count.kind}, {bytes_text(count.nbytes)}"
        what += f", {count.ciphertexts:,} ciphertexts under {count.under}" if count.ciphertexts else ", open"
        lines += [f"  {count.sender} -> {count.receiver}: {what}", f"      {count.tells}"]
    return lines
