"""What a record is made of, level by level: the header that describes it, and the limits it must keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import msgspec
import torch
from torch import Tensor

from atoll.errors import CodecError
from atoll.tensors import Record, Tensors

__all__ = ["OWN", "Header", "Limits", "Node", "outline"]


@dataclass(frozen=True)
class Limits:
    """What a receiver accepts at most. The defaults are for what others send.

    `nbytes` is the length of all, tensors included. `header` is the length of the part that describes it; parsed, it
    takes some thirty times as much. `fields` counts levels and leaves, `depth` levels below the first, `name` and
    `text` characters of a name and of a string or number, `dimensions` those of a tensor.
    """

    nbytes: int = 1 << 30
    header: int = 1 << 20
    fields: int = 10_000
    depth: int = 16
    name: int = 512
    text: int = 4096
    dimensions: int = 16


OWN = Limits(1 << 42, 1 << 30, 1 << 26, 64, 1 << 16, 1 << 24, 64)
"""For what the program itself has written. Whatever is written keeps to it, so that it can be read."""


class Node(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """One field of a record. `content` is the shape of a tensor, how many fields a level has, or a scalar as text."""

    name: str
    kind: str
    content: int | str | list[int]


Header = list[Node]
"""The fields of a record, each level before what is in it; the first is the record itself."""


# --- kinds ----------------------------------------------------------------------------------------------------------


class Scalar(NamedTuple):
    """How a scalar is written, in one way only: text that would be written otherwise is refused."""

    kind: str
    write: Callable[[Any], str]
    read: Callable[[str], Any]


SCALARS: dict[type, Scalar] = {
    int: Scalar("int", hex, lambda text: int(text, 16)),
    float: Scalar("float", float.hex, float.fromhex),
    bool: Scalar("bool", lambda value: "true" if value else "false", lambda text: text == "true"),
    str: Scalar("str", str, str),
    type(None): Scalar("none", lambda value: "", lambda text: None),
}
LEVELS: dict[str, type[Record] | type[Tensors]] = {"record": Record, "tensors": Tensors}
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The kinds of tensors, by the names that safetensors gives them."""

SAID = {
    "record": "a Record", "tensors": "a Tensors", "int": "an int", "float": "a float", "bool": "a bool",
    "str": "a str", "none": "None", **dict.fromkeys(DTYPES, "a tensor"),
}  # fmt: skip
"""What a kind is called in a message."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_KINDS = {Record: "record", Tensors: "tensors", **{kind: scalar.kind for kind, scalar in SCALARS.items()}}


def kind_of(value: Any, name: object, path: tuple[str, ...], within: type) -> str:
    """The kind of a field of the level at `path`.  Raises CodecError for what a `within` cannot hold."""
    if type(name) is not str or not (name.isascii() or _writable(name)):
        problem = f"{where(path)} has a field with the name {short(name)}"
        raise CodecError(problem, hint="names are text that UTF-8 can write")
    if isinstance(value, Tensor):
        kind = _CODES.get(value.dtype)
        if kind is not None and value.layout is torch.strided and not value.is_meta:
            return kind
        what = f"a {value.dtype} tensor ({value.layout}, {value.device})"
    else:
        kind = _KINDS.get(type(value))
        if kind is not None and within is Record and (kind != "str" or _writable(value)):
            return kind
        what = SAID[kind] if kind else f"a {type(value).__module__}.{type(value).__qualname__}"
    raise CodecError(
        f"{where((*path, name))} is {what}, which a {within.__name__} cannot hold",
        hint="records hold tensors, Tensors, records, int, float, bool, str and None; Tensors hold tensors",
    )


def _writable(text: str) -> bool:
    """Whether UTF-8 can write a text: it cannot write half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def outline(record: Record) -> tuple[Header, list[Tensor]]:
    """The header of a record, and its tensors in order.  Raises CodecError for what a record cannot hold."""
    if type(record) is not Record:
        raise CodecError(f"a {type(record).__qualname__} is no Record", hint="only records are written")
    header = [Node("", "record", len(record))]
    tensors: list[Tensor] = []
    _add(record, (), header, tensors)
    return header, tensors


def _add(level: Record | Tensors, path: tuple[str, ...], header: Header, tensors: list[Tensor]) -> None:
    within = type(level)
    for name, value in level.items():
        kind = kind_of(value, name, path, within)
        if kind in DTYPES:
            header.append(Node(name, kind, list(value.shape)))
            tensors.append(value)
        elif kind in LEVELS:
            if len(path) >= OWN.depth:
                raise CodecError(
                    f"{where((*path, name))} is deeper than {OWN.depth} levels", hint="nest less"
                )
            header.append(Node(name, kind, len(value)))
            _add(value, (*path, name), header, tensors)  # type: ignore[arg-type]  # a level, by its kind
        else:
            header.append(Node(name, kind, SCALARS[type(value)].write(value)))


# --- words ----------------------------------------------------------------------------------------------------------


def refuse(problem: str) -> NoReturn:
    """Raise the CodecError of bytes that are not what Atoll writes."""
    hint = "the bytes are damaged, too large, or not what Atoll wrote; get them anew from where they came"
    raise CodecError(problem, hint=hint) from None


def where(path: Sequence[object]) -> str:
    """A field's place in a record, by names that may be a stranger's."""
    plain = (n if isinstance(n, str) and n.isprintable() and 0 < len(n) <= 80 else short(n) for n in path)
    return ".".join(plain) or "the record"


def short(value: object) -> str:
    """A value as it may stand in a message, whatever it is."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
