"""Send the opposite of what was learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atoll.attacks.lie import Lie, Seen
from atoll.spec import Parameter, number

__all__ = ["SignFlip"]


@dataclass(frozen=True)
class SignFlip(Lie):
    """The opposite of its own update, `factor` times.   Li et al., AAAI 2019 (RSA), with factor 4

    u <- -factor * u. With a fifth of equal clients at a factor of 4, a mean stands still.
    """

    factor: float = 4.0

    name: ClassVar[str] = "signflip"
    parameters: ClassVar[tuple[Parameter, ...]] = (number("factor", optional=True, above=0),)

    def sent(self, seen: Seen) -> Tensor:
        return -self.factor * seen.own
