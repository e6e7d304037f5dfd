"""Whole numbers of 8 or 4 bits, with a scale for each group of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from atoll.compress import packing
from atoll.compress.codec import Codec, grouped, size_of, ungrouped
from atoll.tensors import Record

__all__ = ["Whole"]

_GROUP = 2048


@dataclass(frozen=True)
class Whole(Codec):
    """Every number as the nearest of 2 L + 1 steps between -m and m, m the largest of its group of 2048.

    q = round(x L / m), L = 127 with 8 bits and 7 with 4, which go two to a byte. No number is moved by more than half a
    step, m / 2L. A quarter of the bytes, and an eighth (3.99 and 7.97 times less with the scales).
    Steps have 17 bits of the 24 that a float32 has, so that their multiples are exact.
    """

    bits: Literal[4, 8] = 8

    close = True
    again = True

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    @property
    def top(self) -> int:
        """L."""
        return (1 << (self.bits - 1)) - 1

    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        size = size_of(shape)
        kind = torch.int8 if self.bits == 8 else torch.uint8
        return {
            "numbers": (kind, (packing.nbytes(size, self.bits),)),
            "scales": (torch.float32, (-(-size // _GROUP),)),
        }

    def encode(self, value: Tensor, key: Tensor) -> Record:
        whole, scales = self._rounded(value)
        whole = whole.reshape(-1)[: value.numel()]
        if self.bits == 4:
            return Record(numbers=packing.packed(whole.to(torch.int8) + 8, 4), scales=scales)
        return Record(numbers=whole.to(torch.int8), scales=scales)

    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        size, numbers = size_of(shape), sent.numbers
        if self.bits == 4:
            numbers = packing.unpacked(numbers, size, 4) - 8
        return ungrouped(grouped(numbers, _GROUP) * sent.scales[:, None], shape)

    def through(self, value: Tensor, key: Tensor) -> Tensor:
        whole, scales = self._rounded(value)
        return ungrouped(whole * scales[:, None], value.shape)

    def _rounded(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Whole numbers in float32 [groups, 2048], and what one is in each group [groups]."""
        rows = grouped(value, _GROUP)
        scales = _short(rows.abs().amax(1) / self.top)
        steps = torch.where(scales == 0, 1.0, scales)[:, None]
        return torch.round(rows / steps).clamp(-self.top, self.top), scales


def _short(value: Tensor) -> Tensor:
    """Numbers to the nearest that have 17 bits, as Veltkamp (1968) splits them; those from 2^100 on as they are."""
    wide = value * (2.0**7 + 1)
    return torch.where(value < 2.0**100, wide - (wide - value), value)
