"""Rules that fit local work to devices and to how learning goes."""

from __future__ import annotations

from atoll import spec
from atoll.rounds.adapting.deadline import Deadline
from atoll.rounds.adapting.rule import Rule, Seen, Wish, fitting

__all__ = ["Rule", "Seen", "Wish", "fitting", "rule"]

_KNOWN = {"deadline": (spec.number("share", above=0, at_most=1, optional=True),)}
_RULES = {"deadline": Deadline}


def rule(given: str | Rule) -> Rule:
    """The rule of a text such as "deadline:0.5", or the one given.  Raises ConfigError."""
    if isinstance(given, Rule):
        return given
    call = spec.parse(given, "adaptive")
    return _RULES[call.name](**call.read(_KNOWN)) if call.name in _RULES else call.read(_KNOWN)  # type: ignore[return-value]
