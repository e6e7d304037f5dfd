"""Keys and values: reading TOML and ``key=value`` text as a key's type wants, and saying what a key takes."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from atoll.errors import ConfigError

__all__ = ["accepted", "convert", "described", "parse", "toml_line", "toml_value"]

_NOTHING = {"batch_size": ("full", "all", "inf", "none")}  # words for None, by key


def parse(file: Path) -> dict[str, Any]:
    """The keys of a TOML file.  Raises ConfigError if it cannot be read."""
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read {file}: {reason}", hint="give a TOML file, or leave it out") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{file} is not TOML: {error}", hint='lines read key = value, with text in "quotes"'
        ) from None


def convert(key: str, value: Any, where: str, kind: Any) -> Any:
    """The value as the type that the key asks for; text is read as the type wants."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if (
        isinstance(value, str)
        and value.lower() in _NOTHING.get(key, ("none",))
        and NoneType in _members(kind)
    ):
        return None
    try:
        return msgspec.convert(value, kind, strict=not isinstance(value, str))
    except msgspec.ValidationError:
        plain = value is None or isinstance(value, (str, int, float, list, dict))
        hint = (
            f"{key} takes {accepted(key, kind)}"
            if plain
            else "objects go to atoll.Federation(model, data, method)"
        )
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        raise ConfigError(f"{key} cannot be {shown} {where}".rstrip(), hint=hint) from None


def toml_line(key: str, value: Any) -> str:
    """A key with its value as a line of TOML. None is written as a word: leaving the key out means its default."""
    return f"{key} = {toml_value(_NOTHING.get(key, ('none',))[0] if value is None else value)}"


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return (
            "{ "
            + ", ".join(f"{toml_value(str(key))} = {toml_value(each)}" for key, each in value.items())
            + " }"
        )
    return repr(value)


def described(kind: Any) -> str:
    """The meaning of a key, from the annotation of its type."""
    found = (meta.description for meta in _metas(kind) if meta.description)
    return next(found, "")


def accepted(key: str, kind: Any) -> str:
    """What a key takes, in words."""
    words = [_words(each) for each in _members(kind) if each is not NoneType]
    if NoneType in _members(kind):
        words.append(_NOTHING.get(key, ("none",))[0])
    return " or ".join(words)


def _metas(kind: Any) -> tuple[Meta, ...]:
    return kind.__metadata__ if get_origin(kind) is Annotated else ()


def _members(kind: Any) -> tuple[Any, ...]:
    bare = kind.__origin__ if get_origin(kind) is Annotated else kind
    return get_args(bare) if get_origin(bare) in (Union, UnionType) else (kind,)


def _words(kind: Any) -> str:
    signs = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
    bounds = [
        f"{word} {getattr(meta, sign):g}"
        for meta in _metas(kind)
        for sign, word in signs
        if getattr(meta, sign) is not None
    ]
    bare = kind.__origin__ if get_origin(kind) is Annotated else kind
    if get_origin(bare) is Literal:
        return ", ".join(map(str, get_args(bare)))
    if get_origin(bare) in (tuple, list):
        return "a list"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return " ".join([names.get(bare, str(bare)), " and ".join(bounds)]).rstrip()
