"""Noise in whole numbers, a share of it from every client: central privacy without a server to be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.channel.clip import Clip
from atoll.channel.transform import Place, Setting, Transform, plainly, standing
from atoll.errors import ConfigError

__all__ = ["Skellam"]

_TAIL = 12.0
"""Deviations beyond which no noise is drawn: less than 1e-31 of it."""


@dataclass(frozen=True)
class Skellam(Transform):
    """Noise on the whole numbers of secure aggregation, which add up to what one client more or less hides behind.

    Each client adds a difference of two Poisson numbers; sums of such noise are such noise. The shares of (1 - lost) of
    the cohort come to the deviation z * D, where D = C / step + sqrt(d) bounds an update of d numbers after it was
    rounded to whole steps.   Agarwal, Kairouz and Liu, NeurIPS 2021

    In a simulation the noise follows from the run's seed, and protects nobody; a node draws it from a secret of
    its own.

    Args:
        multiplier: z.
        lost: the share of a cohort that may drop out.
    """

    multiplier: float
    lost: float = 0.0
    norm: float = 0.0
    """C, and the cohort; a chain fills them in."""
    cohort: int = 1

    name: ClassVar[str] = "skellam"
    place: ClassVar[Place] = "blur"
    needs: ClassVar[tuple[str, ...]] = ("clip",)
    before: ClassVar[tuple[str, ...]] = ("secagg",)

    def __post_init__(self) -> None:
        self._require("multiplier", 0 < self.multiplier < math.inf, "must be above 0, and finite")
        self._require("lost", 0 <= self.lost < 1, "must be 0 or above, and below 1")

    @property
    def text(self) -> str:
        more = f",{plainly(self.lost)}" if self.lost else ""
        return f"{self.name}:{plainly(self.multiplier)}{more}"

    @property
    def equal(self) -> bool:
        return True

    def fitted(self, before: tuple[Transform, ...], setting: Setting) -> Skellam:
        _, bound = standing(before, Clip)
        if bound.quantile is not None or math.isinf(bound.norm) or bound.order != 2:
            raise ConfigError(
                f"channel {self.text!r} needs a fixed bound of the L2 norm before it",
                hint="write clip:0.5 | " + self.text,
            )
        return replace(self, norm=bound.norm, cohort=setting.cohort)

    @property
    def survivors(self) -> int:
        """So many shares of noise are counted on."""
        return max(1, math.ceil(self.cohort * (1 - self.lost)))

    def sensitivity(self, step: float, size: int) -> tuple[float, float]:
        """By how much one client moves a sum of `size` whole numbers of this step: (L1, L2)."""
        l2 = self.norm / step + math.sqrt(size)
        return min(math.sqrt(size) * l2, l2 * l2), l2

    def deviation(self, step: float, size: int) -> float:
        """Of a client's share of the noise, in steps."""
        return self.multiplier * self.sensitivity(step, size)[1] / math.sqrt(self.survivors)


def drawn(key: Tensor, shape: torch.Size, deviation: float) -> Tensor:
    """Skellam numbers of mean 0 and this deviation, int32, from a stream."""
    table, first = _table(deviation)
    high = seeds.uniform(seeds.fold(key, 1), shape).double()
    low = seeds.uniform(seeds.fold(key, 2), shape).double()
    below = torch.from_numpy(table).to(key.device)
    return (torch.searchsorted(below, high + low / (1 << 24)) + first).to(torch.int32)


@lru_cache(maxsize=8)
def _table(deviation: float) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], int]:
    """The cumulative chances of Skellam numbers, and the first of these numbers."""
    variance = deviation * deviation
    most = math.ceil(_TAIL * deviation + _TAIL)
    size = 2 * most + 1
    angle = 2 * np.pi * np.fft.rfftfreq(size)
    chances = np.fft.irfft(np.exp(variance * (np.cos(angle) - 1)), size)  # of its characteristic function
    chances = np.maximum(np.roll(chances, most), 0)
    total = np.cumsum(chances)
    return total[:-1] / total[-1], -most
