"""Devices as text: ``lognormal:0.6 + diurnal:0.4 + failing:0.05``, or a path to a file of them."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll import spec
from atoll.errors import ConfigError

from .devices import Devices
from .markov import Markov
from .parts import CLASSES, Classes, Equal, Exponential, Failing, LogNormal, Part
from .presence import Daily, Presence
from .tables import of_mapping, read
from .traces import trace

__all__ = ["devices", "kinds"]

_WHAT = "devices"
_DAY = 86_400.0
_SHORTEST = 0.001  # seconds: devices that come and go more often would take forever to look at
_DRAWN = "drawn"


def _seconds(name: str, *, optional: bool = False) -> spec.Parameter:
    return spec.number(name, optional=optional, at_least=_SHORTEST, below=math.inf)


_KNOWN: dict[str, tuple[type, Sequence[spec.Parameter]]] = {
    "equal": (Equal, ()),
    "lognormal": (
        LogNormal,
        (
            spec.number("sigma", at_least=0, at_most=10),
            spec.number("bandwidth_sigma", optional=True, at_least=0, at_most=10),
        ),
    ),
    "exponential": (Exponential, (_seconds("mean", optional=True),)),
    "classes": (Classes, (spec.rest("class=share,..."),)),
    "diurnal": (
        Daily,
        (spec.number("share", above=0, at_most=1), _seconds("period", optional=True)),
    ),
    "markov": (Markov, (_seconds("on"), _seconds("off"))),
    "failing": (Failing, (spec.number("rate", at_least=0, below=1),)),
}
_FORMS = {name: form for name, (_, form) in _KNOWN.items()} | {_DRAWN: (spec.rest("path"),)}


def kinds() -> list[tuple[str, str]]:
    """How each part of a text is written, and the first line of what it says of itself."""
    found = [
        (spec.usage(name, _FORMS[name]), (inspect.getdoc(kind) or "").split("\n")[0])
        for name, (kind, _) in _KNOWN.items()
    ]
    return [
        *found,
        (spec.usage(_DRAWN, _FORMS[_DRAWN]), "Each client draws a row of a CSV or JSON file."),
        ("PATH", "A CSV or JSON file with a row for each client."),
    ]


def devices(
    given: str | os.PathLike[str] | Mapping[Any, Mapping[str, Any]] | Devices,
    *,
    clients: int,
    names: Sequence[object] | None = None,
    seed: int = 0,
    flop: float | None = None,
) -> Devices:
    """The devices that a text, a path, or a mapping {client: {field: value}} stands for; `Devices` as they are.

    Args:
        given: parts with " + " in between (`kinds`), no two of which say the same; or a path; or the mapping.
        clients: how many there are.
        names: what files and mappings call them; their positions without it.
        seed: draws who has which device.
        flop: floating point operations of a training step per sample, for files that say `flops`.

    Raises ConfigError for what a text has wrong, DataError for a file or a mapping.
    """
    if isinstance(given, Devices):
        return given
    known = {"clients": clients, "names": names, "flop": flop}
    if isinstance(given, Mapping):
        found = trace(of_mapping(given, _WHAT), **known)  # type: ignore[arg-type]
        return Devices("{...}", seed, [found.part] if found.part else [], found.presence)
    if isinstance(given, os.PathLike):
        found = trace(read(Path(given)), **known)  # type: ignore[arg-type]
        return Devices(os.fspath(given), seed, [found.part] if found.part else [], found.presence)
    if not isinstance(given, str):
        raise ConfigError(f"devices = {given!r} is no text", hint='write "equal", "lognormal:0.6" or a path')
    said: dict[str, str] = {}
    parts: list[Part] = []
    presence: Presence | None = None
    for call in spec.chain(given, _WHAT, "+"):
        written = call.name if call.given is None else f"{call.name}:{call.given}"
        part, hours = _read(call, written, known)
        for field in (*(part.says if part else ()), *(("hours",) if hours else ())):
            if field in said:
                message = f"devices {given!r}: {said[field]} and {written} both say the {field} of devices"
                raise ConfigError(message, hint="leave one of them out")
            said[field] = written
        parts += [part] if part else []
        presence = hours or presence
    return Devices(given, seed, parts, presence)


def _read(call: spec.Call, written: str, known: Mapping[str, Any]) -> tuple[Part | None, Presence | None]:
    """What one part of a text says."""
    if call.name in _FORMS:
        arguments = call.read(_FORMS)
        if call.name == _DRAWN:
            return trace(read(_path(arguments["path"])), drawn=True, **known)
        if call.name == "classes":
            return Classes(_shares(call, arguments["class=share,..."])), None
        kind: Callable[..., Any] = _KNOWN[call.name][0]
        if kind is Daily:
            share, period = arguments["share"], arguments.get("period", _DAY)
            return None, Daily(share, period) if share < 1 else None
        made = kind(**arguments)
        return (None, made) if isinstance(made, Presence) else (made, None)
    if re.search(r"[/\\]|\.[A-Za-z]\w*$", written):
        return trace(read(_path(written)), **known)
    error = spec.unknown(_WHAT, call.name, _FORMS, call.text)
    error.hint = f"{error.hint}; or the path of a .csv or .json file"
    raise error


def _path(text: str) -> Path:
    return Path(text.strip()).expanduser()


def _shares(call: spec.Call, text: str) -> tuple[tuple[str, float], ...]:
    """The classes and their shares, which add up to 1."""
    place = f"{_WHAT} {call.text!r}"
    example = "phone=0.7,laptop=0.3"
    share = spec.number("share", at_least=0, at_most=1)
    found = spec.pairs(text, "device classes", "=", spec.word("class"), share, example)
    for at, (name, _) in enumerate(found):
        if name not in CLASSES:
            raise spec.unknown("class of devices", name, CLASSES, call.text)
        if name in [each for each, _ in found[:at]]:
            raise ConfigError(f"{place}: the class {name} is there twice", hint=f"write classes:{example}")
    total = math.fsum(each for _, each in found)
    if abs(total - 1) > 1e-6:
        raise ConfigError(
            f"{place}: the shares add up to {total:g}, not to 1", hint=f"write classes:{example}"
        )
    return tuple(found)
