"""Many numbers in few sums, of which the largest can be told again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll import seeds
from atoll.compress.codec import Codec, size_of
from atoll.tensors import Record

__all__ = ["Sketch"]


@dataclass(frozen=True)
class Sketch(Codec):
    """A count sketch: `rows` times, all numbers in c sums by lot, with signs by lot.   Charikar et al., ICALP 2002

    y[r, h_r(i)] += s_r(i) x_i / sqrt(rows), with c = n / (times rows) sums a row; h_r and s_r follow from the key. What
    comes back is the mean over rows of s_r(i) y[r, h_r(i)] sqrt(rows): right in the mean, and |x|^2 (n - 1) / (rows c)
    off, about `times` |x|^2. `median` in its place is hardly touched by what large numbers do to a few rows.
    Sketches add up: that of a sum is the sum of sketches with one key, and lengths and angles are kept, about.

    Args:
        times: how many times fewer numbers travel.
        rows: how often each number is in it; odd, for a median.
    """

    times: float
    rows: int = 5

    name = "sketch"
    unbiased = True
    contracts = False
    linear = True

    def __post_init__(self) -> None:
        fits = 1 <= self.times < math.inf
        self._require("times", fits, "must be 1 or above", "10 sends a tenth of the numbers")
        self._require("rows", self.rows >= 1 and self.rows % 2 == 1, "must be odd", "5 is usual")

    @property
    def text(self) -> str:
        return f"{self.name}:{self.times:g}" + (f",{self.rows}" if self.rows != 5 else "")

    def columns(self, size: int) -> int:
        """Sums in a row, for so many numbers."""
        return max(1, int(size / (self.times * self.rows)))

    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"sums": (torch.float32, (self.rows, self.columns(size_of(shape)))), "key": (torch.int64, ())}

    def encode(self, value: Tensor, key: Tensor) -> Record:
        return Record(sums=self.sums(value, key), key=key)

    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        found = self._told(sent.sums, sent.key, size_of(shape))
        return (sum(found) / self.rows).reshape(tuple(shape))  # type: ignore[union-attr]

    def sums(self, value: Tensor, key: Tensor) -> Tensor:
        """The sketch of a tensor, float32 [rows, c]."""
        flat = value.reshape(-1).float() / math.sqrt(self.rows)
        columns = self.columns(flat.numel())
        unsound = flat.sum() * 0  # nan in all of it where a number is not finite
        found = [
            flat.new_zeros(columns).index_add(0, places, signs * flat)
            for places, signs in self._drawn(key, flat.numel(), columns)
        ]
        return torch.stack(found) + unsound

    def median(self, sums: Tensor, key: Tensor, size: int) -> Tensor:
        """What each of so many numbers was, by the rows' median, float32 [size]."""
        return torch.stack([*self._told(sums, key, size)]).median(0).values

    def touched(self, chosen: Tensor, key: Tensor) -> Tensor:
        """Which of the sums any of the chosen numbers is in; bool [n] to bool [rows, c]."""
        columns = self.columns(chosen.numel())
        ones, none = chosen.float(), torch.zeros(columns, device=chosen.device)
        found = [none.index_add(0, at, ones) > 0 for at, _ in self._drawn(key, chosen.numel(), columns)]
        return torch.stack(found)

    def _told(self, sums: Tensor, key: Tensor, size: int) -> Iterator[Tensor]:
        """What each number was, row by row."""
        for row, (places, signs) in zip(sums, self._drawn(key, size, sums.shape[-1]), strict=True):
            yield signs * row.gather(0, places) * math.sqrt(self.rows)

    def _drawn(self, key: Tensor, size: int, columns: int) -> Iterator[tuple[Tensor, Tensor]]:
        """By row, in which of its sums each number is, and with which sign."""
        for row in range(self.rows):
            stream = seeds.fold(key, row)
            drawn = (seeds.uniform(stream, (size,)).double() * (2 * columns)).long()
            yield drawn >> 1, 1.0 - 2.0 * (drawn & 1).float()
