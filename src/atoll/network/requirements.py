"""What a node requires of the channel: transforms that must be in it, and how much of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from atoll import spec
from atoll.channel import Chain, Clip, Local, Noise, SecAgg, Skellam
from atoll.compress import CODECS
from atoll.spec import Parameter, number

__all__ = ["Requirement"]

_KNOWN: dict[str, tuple[Parameter, ...]] = {
    "clip": (number("norm", optional=True, above=0),),
    **{each: (number("multiplier", optional=True, above=0),) for each in ("noise", "local", "skellam")},
    "secagg": (),
    "he": (),
    **dict.fromkeys(CODECS, ()),
}


@dataclass(frozen=True)
class Requirement:
    """A transform that updates must go through.

    `bound` is the largest norm of "clip:1.0", the least multiplier of "noise:1.0", "local:1.0" and "skellam:1.0"; None
    where none is given.
    """

    name: str
    bound: float | None = None

    @staticmethod
    def parse(text: str) -> Requirement:
        """From the text that a policy has.  Raises ConfigError."""
        call = spec.parse(text, "require")
        return Requirement(call.name, next(iter(call.read(_KNOWN).values()), None))

    def unmet(self, chain: Chain | None) -> str | None:
        """Why a channel does not do what is required, or None."""
        transforms = () if chain is None else chain.transforms
        found = next((each for each in transforms if each.name == self.name), None)
        if found is None:
            return f"{self.name} is not in it"
        if isinstance(found, Clip):
            return self._clip(found)
        if isinstance(found, SecAgg) and found.how != "protocol":
            return f"{found.text} adds up in the open; secagg:{found.bits},protocol hides"
        if isinstance(found, Noise) and not found.private:
            return f"{found.text} can be repeated by whoever knows its seed"
        if isinstance(found, Noise | Local | Skellam):
            least = 0.0 if self.bound is None else self.bound
            if found.multiplier is None:
                return f"{found.text} leaves its multiplier to the coordinator"
            if found.multiplier < least or not found.multiplier:
                return f"its multiplier is {found.multiplier:g}"
        return None

    def _clip(self, found: Clip) -> str | None:
        most = math.inf if self.bound is None else self.bound
        if found.norm > most or math.isinf(found.norm):
            return f"its norm is {found.norm:g}"
        if found.quantile is not None and self.bound is not None:
            return f"the norm of {found.text} moves, and may grow"
        return None
