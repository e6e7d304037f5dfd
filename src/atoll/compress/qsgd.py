"""Levels between nothing and the norm, rounded up or down at random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll import seeds
from atoll.compress import packing
from atoll.compress.codec import Codec, grouped, size_of, ungrouped
from atoll.tensors import Record

__all__ = ["QSGD"]

_GROUP = 512


@dataclass(frozen=True)
class QSGD(Codec):
    """Levels drawn so that the mean is right.   Alistarh et al., NIPS 2017, section 3.1

    A number becomes |x| sign(x_i) l_i / s, l_i one of the two whole numbers beside s |x_i| / |x|.

    |x| is the norm of its group of n = 512. Which of the two is drawn so that the mean is right; the variance is up to
    min(n / s^2, sqrt(n) / s) |x|^2. Numbers have ceil(log2(2 s + 1)) bits, without the paper's coding of gaps.

    Args:
        levels: s.
    """

    levels: int

    name = "qsgd"
    unbiased = True
    contracts = False

    def __post_init__(self) -> None:
        self._require(
            "levels", 1 <= self.levels <= 127, "must lie between 1 and 127", "7 takes 4 bits a number"
        )

    @property
    def text(self) -> str:
        return f"{self.name}:{self.levels}"

    @property
    def close(self) -> bool:
        return self.levels >= 32  # a group of 512 numbers loses 512 / (6 levels^2)

    @property
    def bits(self) -> int:
        """Of a number."""
        return math.ceil(math.log2(2 * self.levels + 1))

    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        size = size_of(shape)
        return {
            "numbers": (torch.uint8, (packing.nbytes(size, self.bits),)),
            "norms": (torch.float32, (-(-size // _GROUP),)),
        }

    def encode(self, value: Tensor, key: Tensor) -> Record:
        whole, norms = self._drawn(value, key)
        numbers = whole.reshape(-1)[: value.numel()].to(torch.int16) + self.levels
        return Record(numbers=packing.packed(numbers, self.bits), norms=norms)

    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        size = size_of(shape)
        whole = packing.unpacked(sent.numbers, size, self.bits) - self.levels
        return ungrouped(grouped(whole, _GROUP) * (sent.norms / self.levels)[:, None], shape)

    def through(self, value: Tensor, key: Tensor) -> Tensor:
        whole, norms = self._drawn(value, key)
        return ungrouped(whole * (norms / self.levels)[:, None], value.shape)

    def _drawn(self, value: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Levels with their signs in float32 [groups, 512], and norms [groups]."""
        rows = grouped(value, _GROUP)
        norms = rows.square().sum(1).sqrt()
        lengths = rows.abs() * (self.levels / torch.where(norms == 0, 1.0, norms))[:, None]
        drawn = torch.floor(lengths + seeds.uniform(key, rows.shape)).clamp(max=self.levels)
        return drawn * torch.sign(rows), norms
