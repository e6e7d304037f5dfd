"""Send noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atoll import seeds
from atoll.attacks.lie import Lie, Seen
from atoll.spec import Parameter, number

__all__ = ["Gaussian"]


@dataclass(frozen=True)
class Gaussian(Lie):
    """Normal noise around 0 in the place of an update.   Blanchard et al., NeurIPS 2017

    u <- N(0, sigma^2 I), for every liar and round another one.
    """

    sigma: float = 1.0

    name: ClassVar[str] = "gaussian"
    parameters: ClassVar[tuple[Parameter, ...]] = (number("sigma", optional=True, above=0),)

    def sent(self, seen: Seen) -> Tensor:
        noise = seeds.normals(seen.key, seen.own.numel()).to(seen.own.device)
        return (self.sigma * noise).to(seen.own.dtype)
