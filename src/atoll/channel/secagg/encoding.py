"""Updates as whole numbers and back: fixed point, stochastic rounding, weights multiplied in.

An update x is clipped to [-C, C] and, with a whole weight w from 1 to W, becomes

    q = floor((x + C) / (2 C) w L + U),   L = 2^bits - 1,   U uniform on [0, 1),

so that q is right on average. Behind the last number stands w itself. Sums stay below 2^32, so that arithmetic modulo
2^32 is arithmetic, and sum q / (L sum w) gives the weighted mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from atoll.errors import ConfigError

__all__ = ["Encoding", "Total"]

_CHUNK = 1 << 14
"""Numbers at a time: their working copies stay in a core's first caches."""

_FRACTION = 16
"""Bits of a uniform draw. Rounding goes up with the probability that it should to within 2^-17."""

Ints = NDArray[np.uint32]


@dataclass(frozen=True)
class Total:
    """A sum, and what it means.

    Args:
        nodes: whose updates are in it.
        sums: uint32 [d + 1], the sum of their encoded updates; the last is that of the whole weights.
        mean: float32 [d], the weighted mean of the updates.
        weight: the sum of the weights, in their own unit.
    """

    nodes: tuple[str, ...]
    sums: Ints
    mean: NDArray[np.float32]
    weight: float


class Encoding(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How updates become whole numbers.

    Args:
        size: numbers of an update, d.
        clip: C; what lies outside [-C, C] is clipped.
        bits: levels between -C and C are 2^bits - 1 for a weight of one level, and w times as many for w levels.
        levels: W; a weight is rounded to one of 1 .. W. With 1 all weigh the same.
        heaviest: the weight that is W levels; none may be larger.
    """

    size: int
    clip: float
    bits: int = 16
    levels: int = 1
    heaviest: float = 1.0

    @property
    def top(self) -> int:
        """L, the largest number that a weight of one level gives."""
        return (1 << self.bits) - 1

    def check(self, clients: int) -> None:
        """Raises ConfigError unless sums of so many clients stay below 2^32, and the rest is in range, too."""
        wrong = (
            "size must be 1 or more" if self.size < 1
            else "clip must be finite and above 0" if not (math.isfinite(self.clip) and self.clip > 0)
            else "bits must be from 1 to 24" if not 1 <= self.bits <= 24
            else "levels must be 1 or more" if self.levels < 1
            else "heaviest must be finite and above 0" if not (math.isfinite(self.heaviest) and self.heaviest > 0)
            else ""
        )  # fmt: skip
        if wrong:
            raise ConfigError(f"encoding of updates: {wrong}")
        if clients * self.levels * self.top >= 1 << 32:
            room = ((1 << 32) - 1) // (clients * self.levels)
            raise ConfigError(
                f"sums of {clients} clients with {self.levels} levels of weight and {self.bits} bits reach 2^32",
                hint=f"bits={(room + 1).bit_length() - 1} has room" if room else "fewer levels of weight",
            )

    def weigh(self, weight: float) -> int:
        """A weight as a number of levels, the nearest of 1 .. W. Raises ConfigError outside (0, heaviest]."""
        if not 0 < weight <= self.heaviest:
            raise ConfigError(
                f"a weight of {weight:g} is outside of (0, {self.heaviest:g}]",
                hint="no client may weigh more than `heaviest`; who has nothing to give stays away",
            )
        return max(1, round(weight / self.heaviest * self.levels))

    def encode(self, update: NDArray[np.floating], weight: float, rng: np.random.Generator) -> Ints:
        """An update [d] as uint32 [d + 1]. `rng` rounds; it hides nothing, and need not be secret.

        Raises ConfigError for another shape, numbers that are not finite, or a weight out of range.
        """
        raw = rng.bit_generator.random_raw(-(-self.size // 4)).astype("<u8", copy=False)
        return self.quantise(update, weight, raw.view("<u2"))

    def quantise(self, update: NDArray[np.floating], weight: float, draws: NDArray[np.uint16]) -> Ints:
        """`encode` with given uniform draws: U = draw / 2^16, one for each number, in order."""
        levels = self.weigh(weight)
        if update.shape != (self.size,):
            raise ConfigError(f"an update has shape {list(update.shape)}, and should have [{self.size}]")
        values = np.empty(self.size + 1, dtype=np.uint32)
        values[-1] = levels
        scale = levels * self.top * 2.0**_FRACTION / (2 * self.clip)
        work = np.empty(min(_CHUNK, self.size))
        fixed = np.empty(len(work), dtype=np.int64)
        for start in range(0, self.size, _CHUNK):
            part = update[start : start + _CHUNK]
            if not np.isfinite(part).all():
                raise ConfigError("an update has numbers that are not finite", hint="leave this client out")
            x, q = work[: len(part)], fixed[: len(part)]
            np.clip(part, -self.clip, self.clip, out=x)
            x += self.clip
            x *= scale
            x += 0.5
            np.copyto(q, x, casting="unsafe")
            q += draws[start : start + _CHUNK][: len(part)]
            q >>= _FRACTION
            values[start : start + len(part)] = q
        return values

    def fits(self, values: Ints) -> bool:
        """Whether these may be what `encode` gives: uint32 [d + 1], a weight of 1 .. W levels, nothing above w L."""
        if values.dtype != np.uint32 or values.shape != (self.size + 1,):
            return False
        levels = int(values[-1])
        return 1 <= levels <= self.levels and int(values[:-1].max()) <= levels * self.top

    def total(self, sums: Ints, nodes: tuple[str, ...]) -> Total | None:
        """What a sum means; None if it is no sum of updates of these nodes, as after a wrong mask."""
        levels = int(sums[-1])
        if (
            not max(1, len(nodes)) <= levels <= len(nodes) * self.levels
            or int(sums[:-1].max()) > levels * self.top
        ):
            return None
        mean = np.empty(self.size, dtype=np.float32)
        scale = 2 * self.clip / (levels * self.top)
        for start in range(0, self.size, _CHUNK):
            part = sums[:-1][start : start + _CHUNK]
            mean[start : start + len(part)] = part * scale - self.clip
        return Total(nodes, sums, mean, levels * self.heaviest / self.levels)
