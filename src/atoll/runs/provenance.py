"""Where a run came from: versions, the command, the commit; and the text of its config.toml."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from atoll.schema import toml_line, toml_value

__all__ = ["changed_text", "command", "commit", "config_text", "versions"]


@cache
def versions() -> dict[str, str]:
    """Versions of what a run's figures depend on."""
    found = {"python": platform.python_version()}
    for name in ("atoll", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # pragma: no cover - run from a bare checkout
            found[name] = "unknown"
    return dict(sorted(found.items()))


def command() -> str | None:
    """The command line of this process, as one would type it; None in an interactive session."""
    if not sys.argv or not sys.argv[0] or sys.argv[0] == "-c":
        return None
    program = Path(sys.argv[0])
    name = "atoll" if program.name == "__main__.py" and program.parent.name == "cli" else program.name
    return shlex.join([name, *sys.argv[1:]])


def commit() -> str | None:
    """The git commit of the working directory, with "+changes" where tracked files differ; None outside git."""
    try:
        run = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def config_text(name: str, config: Mapping[str, Any], about: Mapping[str, Any], verb: str = "run") -> str:
    """config.toml: every setting, then where the run came from in the table [about], which reading it passes over."""
    lines = [f"# {name}: `atoll {verb}` with this file repeats the run, --resume continues it"]
    lines += [toml_line(key, value) for key, value in config.items()]
    lines += ["", "[about]", f'started = "{time.strftime("%Y-%m-%dT%H:%M:%S%z")}"']
    lines += [f"{key} = {toml_value(value)}" for key, value in about.items() if value is not None]
    return "\n".join(lines) + "\n"


def changed_text(text: str, config: Mapping[str, Any]) -> str:
    """config.toml with other values of these keys; what it says of where the run came from stays."""
    settings, mark, origin = text.partition("\n[about]\n")
    lines = settings.split("\n")
    for at, line in enumerate(lines):
        key = line.partition(" = ")[0]
        if key in config:
            lines[at] = toml_line(key, config[key])
    return "\n".join(lines) + mark + origin
