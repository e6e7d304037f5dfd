"""The events as tables of Markdown: what stands in docs/runs.md between two marks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Struct, UnsetType

from atoll.errors import ConfigError
from atoll.runs.events import kinds
from atoll.schema import described

__all__ = ["BEGIN", "END", "rows", "tables", "within"]

BEGIN = "<!-- from src/atoll/runs/events/kinds.py, by `python -m atoll.runs.events docs/runs.md` -->"
END = "<!-- up to here -->"

_PARTS = (
    kinds.Report,
    kinds.Columns,
    kinds.Clock,
    kinds.Evaluation,
    kinds.Spread,
    kinds.Said,
    kinds.Features,
)
_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", NoneType: "null"}


def tables() -> str:
    """The kinds, the fields of each kind, and those of the structures in them."""
    listed = [(f"`{name}`", _about(kind)) for name, kind in kinds.KINDS.items()]
    parts = [_table(("event", "what happened"), listed)]
    parts += [_table((f"`{name}`", "type", "meaning"), rows(kind)) for name, kind in kinds.KINDS.items()]
    for kind in _PARTS:
        parts += [_about(kind), _table((_name(kind), "type", "meaning"), rows(kind))]
    return "\n\n".join(parts)


def within(text: str) -> str:
    """A page with the tables as they are now between its marks.  Raises ConfigError where it lacks them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(
            "the page has no place for the tables of events", hint=f"it is from {BEGIN} to {END}"
        )
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


# --- parts ----------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows(kind: type[Struct]) -> list[tuple[str, str, str]]:
    """(name, type, meaning) of the fields, the time aside; a star for those that may be missing."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        (f"`{name}`{' *' if UnsetType in _members(hint) else ''}", _words(hint), described(hint))
        for name, hint in hints.items()
        if name not in ("time", "__struct_config__")
    ]


def _about(kind: type[Struct]) -> str:
    return " ".join((inspect.getdoc(kind) or "").split())


def _name(kind: type[Struct]) -> str:
    return kind.__name__.lower()


def _members(hint: Any) -> tuple[Any, ...]:
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_args(bare) if get_origin(bare) in (Union, UnionType) else (bare,)


def _words(hint: Any) -> str:
    """A type in words: "integer or null", "[text]", "{text: spread}"."""
    return " or ".join(_word(each) for each in _members(hint) if each is not UnsetType)


def _word(hint: Any) -> str:
    inside = get_args(hint)
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(f'"{each}"' for each in inside)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"{{{_words(inside[0])}: {_words(inside[1])}}}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"[{_words(inside[0])}]"
    if isinstance(hint, type) and issubclass(hint, Struct):
        return _name(hint)
    return "any" if hint is Any else _WORDS[hint]
