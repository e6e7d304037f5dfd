"""Calling a reader with settings that a person typed, and explaining the ones it does not have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from atoll.errors import ConfigError, suggest

__all__ = ["call"]

Result = TypeVar("Result")


def call(function: Callable[..., Result], what: str, options: Mapping[str, Any], *arguments: Any) -> Result:
    """Call the function; `ConfigError` for an option it lacks, or needs and does not get."""
    parameters = list(inspect.signature(function).parameters.values())[len(arguments) :]
    known = [parameter.name for parameter in parameters]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"{what} has no option {option!r}", hint=suggest(option, known) if known else "it has none"
            )
    for parameter in parameters:
        if parameter.default is inspect.Parameter.empty and parameter.name not in options:
            raise ConfigError(f"{what} needs {parameter.name}", hint=f"pass {parameter.name}=...")
    return function(*arguments, **options)
