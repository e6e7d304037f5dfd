"""Attacks, and how they are written: ``backdoor:0 + scaling``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from atoll import spec
from atoll.attacks.alie import ALIE, OptimalALIE
from atoll.attacks.edge import Edge
from atoll.attacks.extremes import MinMax, MinSum
from atoll.attacks.gaussian import Gaussian
from atoll.attacks.infinity import Infinity
from atoll.attacks.ipm import IPM, OptimalIPM
from atoll.attacks.labelflip import LabelFlip
from atoll.attacks.lie import Lie
from atoll.attacks.mimic import Mimic
from atoll.attacks.poison import Poison
from atoll.attacks.scaling import Scaling
from atoll.attacks.signflip import SignFlip
from atoll.attacks.trigger import DBA, Backdoor
from atoll.errors import ConfigError

__all__ = ["KNOWN", "Attack", "attack", "attacks"]

KNOWN: dict[str, type[Lie] | type[Poison]] = {
    kind.name: kind
    for kind in (
        SignFlip, IPM, OptimalIPM, ALIE, OptimalALIE, MinMax, MinSum, Mimic, Gaussian, Infinity, Scaling,
        LabelFlip, Backdoor, DBA, Edge,
    )
}  # fmt: skip
"""The parts of attacks by name."""


@dataclass(frozen=True)
class Attack:
    """What all attackers do: to their data, to what they send, or both.

    >>> Attack([Backdoor(0), Scaling()]).text
    'backdoor:0 + scaling'

    Args:
        parts: at most one `Poison` and one `Lie`.

    Raises ConfigError for two of a kind, or none at all.
    """

    parts: tuple[Lie | Poison, ...]

    def __init__(self, parts: Sequence[Lie | Poison]) -> None:
        object.__setattr__(self, "parts", tuple(parts))
        for each in self.parts:
            if not isinstance(each, Lie | Poison):
                raise ConfigError(
                    f"attack holds {each!r}, and that is no part of one",
                    hint="such as [atoll.attacks.Backdoor(0), atoll.attacks.Scaling()]",
                )
        for kind, what in ((Poison, "do two things to their data"), (Lie, "send two things")):
            if len(found := [each for each in self.parts if isinstance(each, kind)]) > 1:
                raise ConfigError(
                    f"attack {self.text!r}: attackers cannot {what}",
                    hint=f"leave {found[-1].text} out",
                )
        if not self.parts:
            raise ConfigError("attack has no part", hint='leave it out, or name one: "signflip"')

    @property
    def text(self) -> str:
        """How it is written."""
        return " + ".join(each.text for each in self.parts)

    @property
    def poison(self) -> Poison | None:
        """What becomes of the attackers' data, if anything."""
        return next((each for each in self.parts if isinstance(each, Poison)), None)

    @property
    def lie(self) -> Lie | None:
        """What attackers send in the place of what they computed, if anything else."""
        return next((each for each in self.parts if isinstance(each, Lie)), None)


def attack(given: str | Lie | Poison | Sequence[Lie | Poison] | Attack) -> Attack:
    """The attack of a text or of parts; an `Attack` is taken as it is.  Raises ConfigError.

    >>> attack("alie:1.5").parts
    (ALIE(z=1.5),)
    """
    if isinstance(given, Attack):
        return given
    if isinstance(given, Lie | Poison):
        return Attack([given])
    if not isinstance(given, str):
        return Attack([*given])
    known = {name: kind.parameters for name, kind in KNOWN.items()}
    found = [(call.read(known), call.name) for call in spec.chain(given, "attack", "+")]
    return Attack([KNOWN[name](**arguments) for arguments, name in found])


def attacks() -> list[tuple[str, str]]:
    """How each part of an attack is written, and the first line of what its class says of itself."""
    return [
        (spec.usage(name, kind.parameters), (inspect.getdoc(kind) or "").split("\n")[0])
        for name, kind in KNOWN.items()
    ]
