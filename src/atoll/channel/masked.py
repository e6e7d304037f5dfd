"""Secure aggregation: the server learns the sum over a round's clients and nothing else of an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.channel.clip import Clip
from atoll.channel.skellam import Skellam, drawn
from atoll.channel.transform import Place, Setting, Transform, Update, Vector, plainly
from atoll.contract import Job
from atoll.errors import ConfigError
from atoll.privacy.mechanisms import skellam
from atoll.privacy.source import Draws, Source
from atoll.tensors import Record, leaves, map_leaves

if TYPE_CHECKING:
    from atoll.channel.secagg import Encoding

__all__ = ["FLOOR", "RING", "SHARES", "SecAgg"]

RING = 32
"""Bits of the whole numbers that are added up, modulo 2^32."""

FLOOR = 3
"""Clients without whom there is no sum: that of two tells each of them the other's."""

SHARES = 256
"""Whole weights: the heaviest client counts for so many, the others in proportion, and at least for one."""

_STEP = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class SecAgg(Transform):
    """Secure aggregation.   Bonawitz et al., CCS 2017; Bell et al., CCS 2020; see `atoll.channel.secagg`

    A client turns its update into whole numbers, q = floor((x + R) / 2R * L + u), u uniform in [0, 1), L = 2^bits - 1,
    multiplies its weight in, and hides them under masks that cancel in the sum. The mean is unbiased, with steps of
    2R / L. What lies outside [-R, R] is cut off; how many clients had to is counted, in the sum as well.

    By itself the simulation adds up the same whole numbers without keys (the ideal functionality); with `protocol` it
    plays the whole protocol, which gives the same sum to the bit. Between machines it is always the protocol.

    Args:
        bits: of each number.
        how: "ideal" or "protocol".
        range: R; with a fixed `Clip` before it at most its norm.
    """

    bits: int = 16
    how: Literal["ideal", "protocol"] = "ideal"
    range: float = 1.0
    weighted: bool = True
    """Whether weights are multiplied in; a chain says."""
    heaviest: float = 1.0
    """The weight that counts for `SHARES`; a chain fills it in, and what follows."""
    deviation: float = 0.0
    """Of a client's share of noise, in steps (see `Skellam`)."""
    source: Source | None = field(default=None, compare=False, repr=False)
    """A node's own randomness (`drawing`)."""

    name: ClassVar[str] = "secagg"
    place: ClassVar[Place] = "hide"

    def __post_init__(self) -> None:
        self._require("bits", 2 <= self.bits <= 20, "must lie between 2 and 20", "16 is usual")
        self._require("range", 0 < self.range < math.inf, "must be above 0, and finite")

    @property
    def text(self) -> str:
        more: list[str] = [self.how] if self.how != "ideal" else []
        more += [f"range={plainly(self.range)}"] if self.range != 1.0 else []
        return f"{self.name}:{','.join([str(self.bits), *more])}"

    @property
    def sums(self) -> bool:
        return True

    def fitted(self, before: tuple[Transform, ...], setting: Setting) -> SecAgg:
        if setting.cohort < FLOOR:
            raise ConfigError(
                f"channel {self.text!r}: a sum of {setting.cohort} clients a round hides nobody",
                hint=f"set cohort to {FLOOR} or more",
            )
        fixed = [each.norm for each in before if isinstance(each, Clip) and each.quantile is None]
        found = replace(
            self,
            range=min([self.range, *fixed]),
            weighted=not setting.equal,
            heaviest=setting.heaviest,
        )
        for each in before:
            if isinstance(each, Skellam):
                found = replace(found, deviation=each.deviation(found.step, setting.size))
        each_has = (found.top + 2 * found.margin) * (1 if setting.equal else SHARES)
        need = (each_has * setting.cohort).bit_length()
        if need > RING:
            raise ConfigError(
                f"channel {self.text!r}: {setting.cohort} numbers of {self.bits} bits with their weights and noise"
                f" need {need} bits, and the ring has {RING}",
                hint=f"set bits to {max(2, self.bits - (need - RING))}"
                + ("" if setting.equal else ', or weights="equal", which saves 8'),
            )
        return found

    @property
    def top(self) -> int:
        """L, the largest number that an update becomes before noise."""
        return (1 << self.bits) - 1

    @property
    def step(self) -> float:
        """What one of the whole numbers means."""
        return 2 * self.range / self.top

    @property
    def margin(self) -> int:
        """By how much all numbers are moved up, so that noise leaves none below 0."""
        return math.ceil(12 * self.deviation + 12) if self.deviation else 0

    def encoding(self, size: int) -> Encoding:
        """How the protocol is told of vectors of so many numbers, the weight among them."""
        from atoll.channel.secagg import Encoding

        bits = (self.top + 2 * self.margin).bit_length()
        return Encoding(size - 1, self.range, bits, SHARES if self.weighted else 1)

    # --- client half ------------------------------------------------------------------------------------------

    def drawing(self, source: Source) -> SecAgg:
        return replace(self, source=source)

    def send(self, update: Update, told: Record, own: Record, key: Tensor) -> tuple[Update, Record]:
        parts = [v.float() for v in leaves(update.values) if v.numel()]
        far = torch.stack([torch.maximum(v.amax(), -v.amin()) for v in parts]).amax()
        sound = far * 0  # nan where a number is not finite
        there = (update.weight > 0).to(torch.int32)
        shares = there
        if self.weighted:
            whole = torch.round(update.weight / self.heaviest * SHARES)
            shares = whole.clamp(1, SHARES).to(torch.int32) * there
            sound = sound + torch.where(update.weight <= self.heaviest * (1 + 1e-6), 0.0, math.nan)
        draws = None if self.source is None else self.source.at("secagg")
        start = seeds.uniform(key, ()) if draws is None else torch.tensor(draws.uniform(1)[0]).float().frac()
        places = count(0, 1 << 20)
        values = map_leaves(
            lambda v: self._whole(v, start, draws or key, next(places)).mul_(shares), update.values
        )
        report = {name: value.to(torch.int32) * there for name, value in update.report.items()}
        found = Record(**report, cut=(far > self.range).to(torch.int32) * there, weight=shares)
        weight = there.to(update.weight.dtype) + sound
        return update._replace(values=values, weight=weight, report=found), own

    def _whole(self, value: Tensor, start: Tensor, chance: Tensor | Draws, first: int) -> Tensor:
        """A tensor as whole numbers in [0, L], rounded up or down so that the mean is right.

        What is added before rounding is a uniform number of the client's, moved on by an irrational step from one
        place to the next (Weyl): every single place is rounded without bias, for a third of what a hash costs.
        """
        places = torch.arange(first, first + value.numel(), dtype=torch.float64, device=value.device)
        dither = places.mul_(_STEP).frac_().float().reshape(value.shape)
        up = torch.add((dither + start).frac_(), value.float(), alpha=1 / self.step)
        whole = up.add_(self.range / self.step).clamp(0, self.top).to(torch.int32)
        if self.deviation:
            whole = whole + self._share(value, chance, first >> 20) + self.margin
        return whole

    def _share(self, value: Tensor, chance: Tensor | Draws, place: int) -> Tensor:
        """A client's share of noise in whole numbers, int32."""
        if isinstance(chance, Tensor):
            return drawn(seeds.fold(chance, place), value.shape, self.deviation)
        found = skellam(value.numel(), self.deviation**2, chance)
        return found.reshape(value.shape).to(value.device, torch.int32)

    # --- server half ------------------------------------------------------------------------------------------

    @property
    def floor(self) -> int:
        return FLOOR

    def nothing(self) -> Record:
        zero = torch.zeros((), dtype=torch.int64)
        return Record(cut=zero, weight=zero)

    def release(self, sums: Record, told: Record, job: Job) -> Record:
        whole = map_leaves(lambda v: v.to(torch.int64) & (2**RING - 1), sums)
        weight = whole.channel.weight.double()

        def decoded(value: Tensor) -> Tensor:
            sums: Tensor = value.double() * self.step - (self.range + self.margin * self.step) * weight
            return sums.float()

        found = {name: map_leaves(decoded, part) for name, part in whole.items() if name != "channel"}
        return Record(found, channel=map_leaves(lambda v: v.double(), whole.channel))

    @property
    def together(self) -> Callable[[Mapping[int, Vector], Job], Vector] | None:
        return None if self.how == "ideal" else self._protocol

    def _protocol(self, vectors: Mapping[int, Vector], job: Job) -> Vector:
        """The sum of int32 vectors by client, as clients and server come to it between them."""
        from atoll.channel.secagg.rehearsal import rehearsed

        sums = rehearsed(
            {client: vector.view(np.uint32) for client, vector in vectors.items()},
            run=f"seed {job.seed}",
            round=job.round,
            encoding=self.encoding(len(next(iter(vectors.values())))),
        )
        found: Vector = sums.astype(np.int64)
        return found
