"""Send so much of an update that it takes the place of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atoll.attacks.lie import Lie, Seen
from atoll.spec import Parameter, number

__all__ = ["Scaling"]


@dataclass(frozen=True)
class Scaling(Lie):
    """Its own update, `factor` times: for a backdoor.   Bagdasaryan et al., AISTATS 2020

    Model replacement: u <- factor * u. By default the factor is the number of clients for each liar, with which all
    liars of a round together replace the mean.
    """

    factor: float | None = None

    name: ClassVar[str] = "scaling"
    parameters: ClassVar[tuple[Parameter, ...]] = (number("factor", optional=True, above=0),)

    def sent(self, seen: Seen) -> Tensor:
        return (1 / seen.share if self.factor is None else self.factor) * seen.own
