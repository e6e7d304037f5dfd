"""Which keys of a run are its own, and which are settings of its method; what is wrong with any other."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from atoll import methods
from atoll.errors import AtollError, ConfigError, suggest
from atoll.schema import convert

__all__ = ["for_method", "told_apart"]

T = TypeVar("T")


def for_method(content: Mapping[str, Any], method: str) -> dict[str, Any]:
    """What a file says to a method: its top level, and over that the method's own table."""
    table = content.get(method)
    top = {
        key: value
        for key, value in content.items()
        if not (isinstance(value, dict) and key in methods.METHODS)
    }
    return {**top, **(table if isinstance(table, dict) else {})}


def told_apart(
    given: dict[str, tuple[Any, str]], kinds: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is said to a run, key -> (value, where it stands): the values of its own keys, and the method's settings.

    `kinds` are the run's keys with their types. Raises ConfigError for an unknown key or a value of another type.
    """
    name = "fedavg"
    if "method" in given and not isinstance(given["method"][0], dict):
        name = convert("method", *given["method"], kinds["method"])
    method = _located(lambda: methods.get(name), given.get("method", ("", ""))[1])
    hints = get_type_hints(method)
    takes = {each.name: hints[each.name] for each in dataclasses.fields(method)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    about = given.pop("about", ({}, ""))[0] if isinstance(given.get("about", ("",))[0], dict) else {}
    if about.get("custom"):
        raise ConfigError(
            "this config.toml is of a run made in Python, with its own model or data",
            hint="start it again from its program",
        )
    for key, (value, where) in given.items():
        if isinstance(value, dict):
            hint = "all keys stand at the top level, or in a table with a method's name"
            raise ConfigError(f"{key} is a table {where}".rstrip(), hint=hint)
        if key in kinds:
            values[key] = convert(key, value, where, kinds[key])
        elif key in takes:
            settings[key] = convert(key, value, where, takes[key])
        else:
            raise _unknown(key, where, name, [*kinds, *takes])
    return values, settings


def _located(action: Callable[[], T], where: str) -> T:
    """Do it, and say in its error where the cause stands."""
    try:
        return action()
    except AtollError as error:
        raise type(error)(f"{error.message} {where}".rstrip(), hint=error.hint) from None


def _unknown(key: str, where: str, method: str, known: Sequence[str]) -> ConfigError:
    message = f"unknown key {key!r} {where}".rstrip()
    if key == "strategy":
        return ConfigError(message, hint="how several workers train one model is a matter of `atoll train`")
    owners: dict[str, list[str]] = {}
    for name, kind in methods.METHODS.items():
        for setting in methods.fields(kind):
            owners.setdefault(setting.name, []).append(name)
    if key in owners:
        others = ", ".join(owners[key])
        message += f": {key} is a setting of {others}; method is {method}"
        return ConfigError(message, hint=f"choose one of these methods, or leave {key} out")
    if not difflib.get_close_matches(key, known, cutoff=0.55):
        near = difflib.get_close_matches(key, owners, n=1, cutoff=0.55)
        hint = f"atoll methods {method} lists all keys"
        if near:
            hint = f"did you mean {near[0]!r}, a setting of {', '.join(owners[near[0]])}?"
        return ConfigError(message, hint=hint)
    return ConfigError(message, hint=suggest(key, known))
