"""Send what is a little off everywhere, and nowhere far enough to be seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

from torch import Tensor

from atoll.attacks.lie import Lie, Seen, worst
from atoll.spec import Parameter, number

__all__ = ["ALIE", "OptimalALIE", "most"]


def most(clients: int, liars: int) -> float:
    """z_max: so many deviations from the mean are still nearer to it than some honest clients.

    Of n clients, m of them liars, s = floor(n / 2 + 1) - m honest ones must side with the lie, and z_max is the largest
    z with Phi(z) < (n - m - s) / (n - m).   Baruch et al., NeurIPS 2019, Algorithm 3. With so few liars that this is
    below 0 it is 0; with so many that nobody needs to side with them, the share is taken to be 1 - 1 / 2n.
    """
    honest = clients - liars
    if honest < 1:
        return 0.0
    share = (honest - (math.floor(clients / 2 + 1) - liars)) / honest
    return max(0.0, NormalDist().inv_cdf(min(max(share, 1e-9), 1 - 1 / (2 * clients))))


@dataclass(frozen=True)
class ALIE(Lie):
    """Every number z deviations from the honest mean: a little is enough.   Baruch et al., NeurIPS 2019, Algorithm 3

    u <- mean(honest) - z * std(honest), coordinate by coordinate, where z is what hides among the clients of the round
    (`most`) unless it is given. The deviation is that of the clients at hand (divided by their number).
    """

    z: float | None = None

    name: ClassVar[str] = "alie"
    parameters: ClassVar[tuple[Parameter, ...]] = (number("z", optional=True),)
    looks: ClassVar[bool] = True

    def sent(self, seen: Seen) -> Tensor:
        z = most(len(seen.others) + seen.liars, seen.liars) if self.z is None else self.z
        return seen.others.mean(0) - z * seen.others.std(0, correction=0)


@dataclass(frozen=True)
class OptimalALIE(Lie):
    """Every number as many deviations off as does most harm to the rule.   Allouah et al., AISTATS 2023

    z comes from a search by trying the server's rule (see `atoll.attacks.lie.worst`).
    """

    name: ClassVar[str] = "optimal-alie"
    looks: ClassVar[bool] = True

    def sent(self, seen: Seen) -> Tensor:
        mean, off = seen.others.mean(0), seen.others.std(0, correction=0)
        start = most(len(seen.others) + seen.liars, seen.liars)
        return mean - worst(lambda z: seen.harm(mean - z * off), start) * off
