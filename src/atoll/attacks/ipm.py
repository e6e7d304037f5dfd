"""Send what points away from where the honest clients go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atoll.attacks.lie import Lie, Seen, worst
from atoll.spec import Parameter, number

__all__ = ["IPM", "OptimalIPM"]


@dataclass(frozen=True)
class IPM(Lie):
    """The opposite of the honest mean, `factor` times.   Xie, Koyejo and Gupta, UAI 2019

    Inner product manipulation: u <- -factor * mean(honest). Small factors hide among the honest, and still turn many a
    robust rule around.
    """

    factor: float = 0.1

    name: ClassVar[str] = "ipm"
    parameters: ClassVar[tuple[Parameter, ...]] = (number("factor", optional=True, above=0),)
    looks: ClassVar[bool] = True

    def sent(self, seen: Seen) -> Tensor:
        return -self.factor * seen.others.mean(0)


@dataclass(frozen=True)
class OptimalIPM(Lie):
    """The opposite of the honest mean, as often as does most harm to the rule.   Allouah et al., AISTATS 2023

    The factor comes from a search by trying the server's rule (see `atoll.attacks.lie.worst`).
    """

    name: ClassVar[str] = "optimal-ipm"
    looks: ClassVar[bool] = True

    def sent(self, seen: Seen) -> Tensor:
        mean = seen.others.mean(0)
        return -worst(lambda factor: seen.harm(-factor * mean), IPM.factor) * mean
