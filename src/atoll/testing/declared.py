"""What a method declares about itself: its settings, and how replies are put together."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, get_args, get_type_hints

from atoll.contract import Method, Rule
from atoll.errors import ConfigError
from atoll.methods import fields
from atoll.schema import convert
from atoll.testing.report import Notes

__all__ = ["declared"]


def declared(method: Method, notes: Notes) -> None:
    """Look at everything that can be said without running the method."""
    problem = _dataclass(method) or _documented(method) or _writable(method)
    if problem is not None:
        notes.wrong("settings", *problem)
    for name, rule in method.rules.items():
        if rule not in get_args(Rule):
            notes.wrong(
                "rules", f"rules say {rule!r} of the field {name}", f"known: {', '.join(get_args(Rule))}"
            )


def _dataclass(method: Method) -> tuple[str, str] | None:
    kind = type(method)
    mine = [
        name for name, said in inspect.get_annotations(kind).items() if not str(said).startswith("ClassVar")
    ]
    if "__dataclass_params__" not in kind.__dict__ and (mine or not dataclasses.is_dataclass(kind)):
        return (
            f"{kind.__name__} is no dataclass",
            "write @dataclass(frozen=True, kw_only=True) above the class",
        )
    if not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return f"{kind.__name__} is not frozen", "write @dataclass(frozen=True, kw_only=True) above the class"
    try:
        hash(method)
    except TypeError as error:
        return (
            f"{kind.__name__} cannot be hashed: {error}",
            "settings are numbers, text or tuples; worker processes know a method by its hash",
        )
    return None


def _documented(method: Method) -> tuple[str, str] | None:
    missing = [each.name for each in fields(type(method)) if not each.help]
    if missing:
        return (
            f"the docstring of {type(method).__name__} does not say what {', '.join(missing)} means",
            "write an Args section, name: text; atoll methods and error messages use it",
        )
    return None


def _writable(method: Method) -> tuple[str, str] | None:
    hint = "settings are true or false, numbers, text, None, or tuples of them"
    try:
        hints = get_type_hints(type(method))
    except NameError as error:
        return f"the type of a setting cannot be read: {error}", "import the type where the method is defined"
    for each in dataclasses.fields(method):  # type: ignore[arg-type]
        value = getattr(method, each.name)
        if not _plain(value):
            return f"{each.name} = {value!r} is a {type(value).__name__}, which TOML cannot hold", hint
        try:
            convert(each.name, list(value) if isinstance(value, tuple) else value, "", hints[each.name])
        except (ConfigError, TypeError) as error:
            return (
                f"{each.name} = {value!r} does not fit its type {each.type}: {str(error).splitlines()[0]}",
                hint,
            )
    return None


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
