"""Rules that fit local work to devices and to how learning goes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from atoll import own, spec
from atoll.errors import ConfigError
from atoll.rounds.adapting.adacomm import AdaComm
from atoll.rounds.adapting.bandwidth import Bandwidth
from atoll.rounds.adapting.cohort import Growing
from atoll.rounds.adapting.compass import Compass
from atoll.rounds.adapting.deadline import Deadline
from atoll.rounds.adapting.drift import Drift
from atoll.rounds.adapting.joined import Joined
from atoll.rounds.adapting.pacer import Pacer
from atoll.rounds.adapting.rule import Away, Rule, Seen, Wish, fitting
from atoll.rounds.adapting.work import asked, limited, planned, seen
from atoll.rounds.durations import seconds

__all__ = [
    "Away",
    "Rule",
    "Seen",
    "Wish",
    "asked",
    "fitting",
    "limited",
    "planned",
    "rule",
    "rules",
    "seen",
]


def _every(text: str) -> int | float:
    """Rounds, or virtual seconds where a unit is there."""
    found = seconds(text)
    value = int(text) if found is None else found
    if value <= 0:
        raise ValueError
    return value


_SHARE = spec.number("share", above=0, at_most=1, optional=True)
_WINDOW = spec.whole("window", at_least=1, optional=True)
_FLAT = spec.number("flat", at_least=0, below=1, optional=True)
_KNOWN = {
    "deadline": (_SHARE,),
    "adacomm": (
        spec.Parameter("every", "a number of rounds, or a time such as 600s", _every, optional=True),
    ),
    "bandwidth": (_SHARE,),
    "cohort": (spec.whole("start", at_least=1, optional=True), _WINDOW, _FLAT),
    "compass": (spec.number("least", above=0, at_most=1, optional=True),),
    "drift": (spec.number("most", above=0, optional=True), _WINDOW),
    "pacer": (_SHARE, spec.number("step", above=0, below=1, optional=True), _WINDOW, _FLAT),
}
_RULES: dict[str, Callable[..., Rule]] = {
    "deadline": Deadline,
    "adacomm": AdaComm,
    "bandwidth": Bandwidth,
    "cohort": Growing,
    "compass": Compass,
    "drift": Drift,
    "pacer": Pacer,
}


def rules() -> list[tuple[str, str]]:
    """How each rule is written, and the first line of what its class says of itself."""
    return [
        (spec.usage(name, _KNOWN[name]), (inspect.getdoc(kind) or "").split("\n")[0])
        for name, kind in _RULES.items()
    ]


def rule(given: str) -> Rule:
    """The rule of a text such as "deadline:0.5 + adacomm:20".  Raises ConfigError.

    "package.module:Name" is a rule of the user's own, or a class of them (see `atoll.own`).

    >>> rule("adacomm:10min")
    AdaComm(every=10, seconds=600.0)
    """
    made: list[Rule] = []
    for call in spec.chain(given, "adaptive", "+"):
        code = f"{call.name}:{(call.given or '').strip()}"
        new = _own(code) if call.name not in _KNOWN and own.named(code) else _made(call)
        if new.name in [each.name for each in made]:
            raise ConfigError(
                f"adaptive = {given!r}: {new.name} is there twice", hint="leave one of them out"
            )
        if new.chooses and any(each.chooses for each in made):
            raise ConfigError(
                f"adaptive = {given!r}: two rules choose clients' codecs", hint=f"leave {new.name} out"
            )
        made.append(new)
    return made[0] if len(made) == 1 else Joined(tuple(made))


def _made(call: spec.Call) -> Rule:
    arguments: dict[str, Any] = call.read(_KNOWN)
    if isinstance(arguments.get("every"), float):
        arguments = {"seconds": arguments["every"]}
    return _RULES[call.name](**arguments)


def _own(name: str) -> Rule:
    """The rule that a name of the user's own stands for, or what its class makes without arguments."""
    found = own.found(name, "adaptive")
    made = found() if isinstance(found, type) and issubclass(found, Rule) else found
    if not isinstance(made, Rule):
        raise ConfigError(
            f"adaptive = {name!r} is no rule", hint="name a subclass of Rule, or an object of one"
        )
    return made
