"""`atoll init`: a file of settings to start from, with every key, what it means and what it takes."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

from atoll import methods
from atoll.errors import ConfigError
from atoll.experiment import Experiment, run_settings
from atoll.runs.folder import writing
from atoll.schema import accepted, described, toml_line

__all__ = ["commented", "init"]

_FIRST = ("data", "partition", "model", "method", "rounds", "cohort", "lr", "epochs", "batch_size", "seed")
_WIDTH = 100


def init(file: str, sets: list[str]) -> None:
    """Write the file.  Raises ConfigError where there is one, RunError where it cannot be written."""
    experiment = Experiment.read(sets=sets)
    place = Path(file)
    if place.exists():
        raise ConfigError(f"{file} is there already", hint="name another file: atoll init FILE.toml")
    with writing(place, "the settings"):
        place.write_text(commented(experiment), "utf-8")
    print(f"wrote {file}\nrun it with: atoll run {file}")


def commented(experiment: Experiment) -> str:
    """All settings as TOML. What is set, and what one sets first, holds; the defaults of the rest are comments."""
    usual = {each.name: each.default for each in dataclasses.fields(experiment)}
    usual |= {each.name: each.default for each in methods.fields(methods.get(experiment.method))}
    values, told = experiment.to_dict(), _told(experiment.method)
    first = [key for key in _FIRST if key in values]
    first += [key for key in values if key not in first and values[key] != usual[key]]
    head = [
        f"# Settings of an Atoll run, method {experiment.method}. Lines that begin with #: are the defaults of",
        "# further keys; take the #: away to set one. atoll run FILE runs this, --set KEY=VALUE wins over it.",
    ]
    lines = [*head, ""]
    for key in first:
        lines += [*told[key], toml_line(key, values[key]), ""]
    lines += ["# --- further settings ---", ""]
    for key in values:
        if key not in first:
            lines += [*told[key], f"#: {toml_line(key, values[key])}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _told(method: str) -> dict[str, list[str]]:
    """Key -> comment lines: what it means, and what it takes."""
    kind = methods.get(method)
    hints = get_type_hints(kind)
    texts = {
        key: (described(annotated), accepted(key, annotated)) for key, annotated in run_settings().items()
    }
    texts |= {each.name: (each.help, accepted(each.name, hints[each.name])) for each in methods.fields(kind)}
    return {key: list(_comment(meaning, takes)) for key, (meaning, takes) in texts.items()}


def _comment(meaning: str, takes: str) -> Iterator[str]:
    text = f"{meaning.rstrip('.')}  ({takes})" if meaning else takes
    for line in textwrap.wrap(text, _WIDTH - 2, break_on_hyphens=False):
        yield f"# {line}"
