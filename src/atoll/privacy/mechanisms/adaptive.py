"""A clip that follows a quantile of the updates' norms.   Andrew, Thakkar, McMahan and Ramaswamy, NeurIPS 2021."""

from __future__ import annotations

import math

from atoll.errors import ConfigError
from atoll.privacy.mechanisms.continuous import normal
from atoll.privacy.source import Draws

__all__ = ["next_clip", "noisy_fraction", "split"]


def split(noise: float, deviation: float) -> float:
    """The noise for the update, z_D = (z^-2 - (2 deviation)^-2)^(-1/2), where both together cost what `noise` = z does.

    `deviation` is that of the noise on the count of clients within the clip (a twentieth of the cohort is usual);
    a client moves that count, with bits centred at 0, by 1/2.   Theorem 1.

    Raises ConfigError where the count alone costs more: deviation must be above z / 2.
    """
    if not (noise > 0 and deviation > noise / 2):
        raise ConfigError(
            f"a count with deviation {deviation:g} costs more than noise {noise:g} allows",
            hint=f"its deviation is above half the noise, {noise / 2:g}: a larger cohort allows more",
        )
    return 1 / math.sqrt(noise**-2 - (2 * deviation) ** -2)


def noisy_fraction(within: float, cohort: float, deviation: float, draws: Draws) -> float:
    """The share of clients whose update was within the clip, with noise on the count: may be below 0 or above 1.

    `within` is the sum over those that came of (1 if within the clip else 0) - 1/2, and `cohort` the size that is
    EXPECTED, so that who came does not show.
    """
    return (within + deviation * float(normal(draws, 1)[0])) / cohort + 0.5


def next_clip(clip: float, fraction: float, quantile: float = 0.5, rate: float = 0.2) -> float:
    """C exp(-rate (fraction - quantile)): smaller where more than the wanted share was within the clip already."""
    return clip * math.exp(-rate * (fraction - quantile))
