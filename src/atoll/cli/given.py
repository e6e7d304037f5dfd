"""What stands on a command line: settings that were put where none are read, code that is named, names to complete."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from atoll import own
from atoll.errors import ConfigError, suggest

__all__ = [
    "File", "Json", "Quiet", "Resume", "Runs", "Save", "Sets", "WithSettings", "check_file", "code", "runs",
]  # fmt: skip

_SETTING = re.compile(r"[a-z]\w*=")


_UsageError: Any = typer.BadParameter.__mro__[1]  # typer has a click of its own, or the one that is installed


class WithSettings(TyperCommand):
    """A command that takes `--set KEY=VALUE`: what is meant for it but written otherwise is told how to write it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            option = getattr(error, "option_name", None)
            hint = _loose(given) if option is None else _meant(option, given, ctx.command_path)
            if hint is None:
                raise
            raise ConfigError(
                error.message if option is None else f"there is no option {option}", hint=hint
            ) from None


def _loose(given: list[str]) -> str | None:
    """How to write settings that stand alone; None where there are none."""
    pairs = zip(["", *given], given, strict=False)
    loose = [word for before, word in pairs if _SETTING.match(word) and not before.startswith("-")]
    return f"settings follow --set: {' '.join(f'--set {word}' for word in loose)}" if loose else None


def _meant(option: str, given: list[str], command: str) -> str | None:
    """What to write in the place of an option that is the name of a setting; None where it is none."""
    key = option.lstrip("-").replace("-", "_")
    known = _settings(command)
    if key not in known:
        hint = suggest(key, known)
        return f"{hint} Settings follow --set" if hint.startswith("did you mean") else None
    place = next((i for i, word in enumerate(given) if word.partition("=")[0] == option), len(given))
    word = given[place] if place < len(given) else ""
    after = given[place + 1] if place + 1 < len(given) else "VALUE"
    return f"settings follow --set: --set {known[key]}={word.partition('=')[2] or after}"


def _settings(command: str) -> dict[str, str]:
    """What a command's settings are called, and how they are written."""
    if " vertical " in command:
        from atoll.vertical.protocols import PROTOCOLS
        from atoll.vertical.settings import Vertical

        of_protocols = {
            each.name: f"{name}.{each.name}" for name, kind in PROTOCOLS.items() for each in fields(kind)
        }
        return of_protocols | {"steps": "features.steps"} | {key: key for key in Vertical.kinds()}
    return {key: key for key in (_trainings() if command.endswith(" train") else _federations())}


def _federations() -> set[str]:
    """The settings of `atoll run`."""
    from atoll import methods
    from atoll.experiment import run_settings

    own = {each.name for kind in methods.METHODS.values() for each in methods.fields(kind)}
    return {*run_settings(), *own}


def _trainings() -> set[str]:
    """The settings of `atoll train`."""
    from atoll.distributed.settings import Training

    return set(Training.kinds())


def check_file(file: str | None) -> None:
    """Raise ConfigError where a setting stands in the place of a file of settings."""
    if file is not None and _SETTING.match(file) and not Path(file).exists():
        raise ConfigError(f"there is no file {file}", hint=f"settings follow --set: --set {file}")


def code(texts: Iterable[str], *further: str) -> dict[str, str]:
    """What `--code KEY=MODULE:NAME` names: name -> key, one of those for code or a further one.  Raises ConfigError."""
    found = {}
    for text in texts:
        key, _, name = text.partition("=")
        if key not in (*own.KEYS, *further) or not own.named(name):
            raise ConfigError(
                f"--code {text}", hint="such as --code model=nets:Small, a module of this machine"
            )
        found[name] = key
    return found


def runs(incomplete: str) -> list[str]:
    """The runs whose names begin like that, the newest first; for the shell."""
    from atoll.runs.folder import RunFolder, default_place

    names = [each.name for each in reversed(RunFolder.all(default_place()))]
    return [name for name in ["last", *names] if name.startswith(incomplete)]


# --- options that several commands have -----------------------------------------------------------------------------

File = Annotated[str | None, typer.Argument(metavar="FILE.toml", help="Settings, as KEY = VALUE lines.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting; wins over the file. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout; text goes to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the summary at the end.")]
Save = Annotated[
    str | None, typer.Option("--save", metavar="FILE.safetensors", help="Write the final model there.")
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        help="Go on with a run: its folder, its name, or last.",
        autocompletion=runs,
    ),
]
Runs = Annotated[
    str | None, typer.Option("--runs", metavar="DIR", help="Where run folders go (ATOLL_RUNS, or runs).")
]
