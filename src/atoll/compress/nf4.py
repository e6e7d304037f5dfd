"""Sixteen levels where normal numbers are, and a scale for each block of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

from atoll.compress import packing
from atoll.compress.codec import Codec, grouped, size_of, ungrouped
from atoll.tensors import Record

__all__ = ["NF4"]

_BLOCK = 64


@cache
def levels() -> tuple[float, ...]:
    """The sixteen levels, ascending from -1 to 1.

    Quantiles of N(0, 1) at equal steps of probability, eight of them above 0 and seven below, and 0 itself; divided by
    the largest. The outermost probability is halfway between 1 - 1/32 and 1 - 1/30, which would suit either half alone.
    """
    top, quantile = 1 - (1 / 32 + 1 / 30) / 2, NormalDist().inv_cdf
    above = [quantile(0.5 + (top - 0.5) * k / 8) for k in range(1, 9)]
    below = [-quantile(0.5 + (top - 0.5) * k / 7) for k in range(7, 0, -1)]
    return tuple(each / above[-1] for each in (*below, 0.0, *above))


@dataclass(frozen=True)
class NF4(Codec):
    """4-bit normal float: the nearest of 16 quantiles of N(0, 1).   Dettmers et al., NeurIPS 2023, section 3

    q = the nearest of the levels to x / m, m the largest |x| of its block; two numbers to a byte, m in float32. 0 comes
    back as 0, and the largest as itself. With blocks of 64 numbers, 4.5 bits each: 14.06 % of float32. No block has
    numbers of two tensors, so that a large model is packed and opened tensor by tensor.

    Args:
        block: numbers that have one scale.
    """

    block: int = _BLOCK

    name = "nf4"
    close = True
    apart = True

    def __post_init__(self) -> None:
        self._require(
            "block", 1 <= self.block <= 1 << 20, "must lie between 1 and 1048576", "64 is the paper's"
        )

    @property
    def text(self) -> str:
        return self.name if self.block == _BLOCK else f"{self.name}:{self.block}"

    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        size = size_of(shape)
        return {
            "numbers": (torch.uint8, (packing.nbytes(size, 4),)),
            "scales": (torch.float32, (-(-size // self.block),)),
        }

    def encode(self, value: Tensor, key: Tensor) -> Record:
        places, scales = self._places(value)
        return Record(numbers=packing.packed(places.reshape(-1)[: value.numel()], 4), scales=scales)

    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        octets = sent.numbers
        known = torch.tensor(levels(), device=octets.device)
        pairs = torch.stack(
            [known.repeat(16), known.repeat_interleave(16)], 1
        )  # of a byte, the lower bits first
        numbers = pairs.index_select(0, octets.to(torch.int32)).reshape(-1)[: size_of(shape)]
        return ungrouped(grouped(numbers, self.block) * sent.scales[:, None], shape)

    def through(self, value: Tensor, key: Tensor) -> Tensor:
        places, scales = self._places(value)
        known = torch.tensor(levels(), device=value.device)
        return ungrouped(known[places.to(torch.int32)] * scales[:, None], value.shape)

    def _places(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Which level each number takes, int32 [blocks, block], and scales [blocks]."""
        rows = grouped(value, self.block)
        scales = rows.abs().amax(1)
        known = torch.tensor(levels(), device=value.device)
        between = (known[1:] + known[:-1]) / 2
        shares = rows / torch.where(scales == 0, 1.0, scales)[:, None]
        return torch.bucketize(shares, between, out_int32=True), scales
