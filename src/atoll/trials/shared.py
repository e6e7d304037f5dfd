"""The settings that the points of a sweep have in common, of which every method takes those that it knows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll import spec
from atoll.errors import ConfigError
from atoll.experiment import Experiment, run_settings
from atoll.keys import for_method
from atoll.schema import parse
from atoll.trials.baselines import known

__all__ = ["Shared", "takes"]


def takes(method: str, key: str, methods: Collection[str]) -> bool:
    """Whether a setting is given to a method: not if it knows it not, but another one of these does.

    A setting that none of them knows is given to all, so that it is an error.
    """
    if key in run_settings() or key in known(method):
        return True
    return not any(key in known(other) for other in methods)


@dataclass(frozen=True)
class Shared:
    """A TOML file, ``key=value`` texts and keywords, as `Experiment.read` takes them; the later ones win."""

    file: str | Path | None
    sets: Sequence[str]
    keywords: Mapping[str, Any]

    def method(self, given: Mapping[str, Any]) -> str:
        """The method of a combination of further settings."""
        whole = {**(parse(Path(self.file)) if self.file is not None else {}), **_keys(self.sets)}
        return str({"method": Experiment.method, **whole, **self.keywords, **given}["method"]).strip()

    def read(self, given: Mapping[str, Any], method: str, methods: Collection[str]) -> Experiment:
        """The experiment of a combination with a method, without the settings that are for others of these methods.

        Raises ConfigError, with the combination at fault.
        """
        sets = [text for text in self.sets if takes(method, spec.assignment(text, "--set")[0], methods)]
        keywords = {key: value for key, value in self.keywords.items() if takes(method, key, methods)}
        try:
            content = for_method(parse(Path(self.file)), method) if self.file is not None else {}
            kept = {key: value for key, value in content.items() if takes(method, key, methods)}
            if len(kept) == len(content):
                return Experiment.read(self.file, sets, **{**keywords, **given, "method": method})
            later = {*_keys(sets), *keywords, *given}
            kept = {key: value for key, value in kept.items() if key not in later}
            return Experiment.read(None, sets, **{**kept, **keywords, **given, "method": method})
        except ConfigError as error:
            shown = ", ".join(f"{key}={value}" for key, value in given.items())
            message = f"{error.message} ({shown})" if shown else error.message
            raise ConfigError(message, hint=error.hint) from None


def _keys(sets: Sequence[str]) -> dict[str, str]:
    return dict(spec.assignment(text, "--set") for text in sets)
