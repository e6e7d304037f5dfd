"""Choices as text: ``uniform``, ``power:30``, ``tifl:5,credits=40``."""

from __future__ import annotations

import inspect

from atoll import own, spec
from atoll.errors import ConfigError
from atoll.spec import number, whole

from .contract import Choice
from .cyclic import Cyclic
from .fair import Fair
from .importance import Importance
from .oort import Oort
from .poisson import Poisson
from .power import Power
from .tifl import TiFL
from .uniform import Uniform
from .weighted import Weighted

__all__ = ["choice", "choices"]

_KNOWN: dict[str, type[Choice]] = {
    kind.name: kind for kind in (Uniform, Poisson, Cyclic, Weighted, Power, Importance, Fair, TiFL, Oort)
}
_MOST = whole("most", optional=True, at_least=1)
_HEADS: dict[str, tuple[spec.Parameter, ...]] = {
    "uniform": (),
    "poisson": (),
    "cyclic": (),
    "weighted": (_MOST,),
    "power": (whole("candidates", at_least=1), _MOST),
    "importance": (number("even", optional=True, above=0, at_most=1),),
    "fair": (),
    "tifl": (
        whole("tiers", at_least=1),
        whole("credits", optional=True, at_least=1),
        whole("every", optional=True, at_least=1),
    ),
    "oort": (
        number("exploration", optional=True, at_least=0, at_most=1),
        number("alpha", optional=True, at_least=0, below=float("inf")),
        number("threshold", optional=True, above=0, at_most=100),
        whole("blacklist", optional=True, at_least=1),
    ),
}


def choices() -> list[tuple[str, str]]:
    """How each choice is written, and the first line of what its class says of itself."""
    return [
        (spec.usage(name, _HEADS[name]), (inspect.getdoc(kind) or "").split("\n")[0])
        for name, kind in _KNOWN.items()
    ]


def choice(given: str | Choice) -> Choice:
    """The choice that a text names; a `Choice` is taken as it is.

    "package.module:Name" is a choice of the user's own, or a class of them (see `atoll.own`). Raises ConfigError for
    anything else.
    """
    if isinstance(given, Choice):
        return given
    if not isinstance(given, str):
        raise ConfigError(
            f"choose = {given!r} is a {type(given).__name__}",
            hint='give a text such as "uniform", or an object whose class is a Choice',
        )
    call = spec.parse(given, "choice")
    if call.name not in _KNOWN and own.named(given) == [given.strip()]:
        return _own(given.strip())
    if call.name not in _KNOWN:
        error = spec.unknown("choice", call.name, _KNOWN, call.text)
        others = "" if str(error.hint).startswith("known: ") else f" known: {', '.join(sorted(_KNOWN))}"
        hint = f"{error.hint}{others}; a choice of your own is package.module:Name"
        raise ConfigError(error.message, hint=hint)
    return _KNOWN[call.name](**call.read(_HEADS))


def _own(name: str) -> Choice:
    """The choice that a name of the user's own stands for, or what its class makes without arguments."""
    found = own.found(name, "choose")
    made = found() if isinstance(found, type) and issubclass(found, Choice) else found
    if not isinstance(made, Choice):
        raise ConfigError(
            f"choose = {name!r} is no choice", hint="name a subclass of Choice, or an object of one"
        )
    return made
