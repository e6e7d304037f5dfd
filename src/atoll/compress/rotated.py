"""A few bits a number after a random rotation, which makes all vectors look normal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from atoll import seeds
from atoll.compress import packing
from atoll.compress.codec import Codec, size_of
from atoll.tensors import Record

__all__ = ["Eden", "hadamard"]

_BLOCK = 4096

CENTROIDS: Mapping[int, tuple[float, ...]] = {
    1: (0.797884561,),
    2: (0.452780035, 1.510417608),
    3: (0.245094179, 0.756005281, 1.343909279, 2.151945705),
    4: (
        0.128395030,
        0.388048299,
        0.656759119,
        0.942340456,
        1.256231197,
        1.618046386,
        2.069017227,
        2.732589571,
    ),
}
"""The upper half of the 2^bits numbers that a standard normal one is best told by (Lloyd 1982; Max 1960)."""


def hadamard(rows: Tensor) -> Tensor:
    """Rows [n, size], size a power of two, times the orthogonal Hadamard matrix: its own inverse.

    By sums and differences, in the same order for one row and for many.
    """
    count, size = rows.shape
    half = 1
    while half < size:
        pairs = rows.reshape(count, -1, 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        rows = torch.stack([first + second, first - second], 2)
        half *= 2
    return rows.reshape(count, size) / math.sqrt(size)


@dataclass(frozen=True)
class Eden(Codec):
    """The nearest of 2^bits centroids after a random rotation.   Vargaftik et al., NeurIPS 2021, ICML 2022

    y = H D x in blocks of 4096, H the Hadamard matrix and D random signs; q the Lloyd-Max centroids nearest to
    y sqrt(n) / |y|. What comes back is D H (S q), with a scale S for every block: <y, q> / |q|^2 has the least error, a
    share of 0.363, 0.1175, 0.0345 and 0.0095 of |x|^2 with 1 to 4 bits on normal numbers; |y|^2 / <y, q> is `unbiased`,
    with 0.571 for one bit. (That is proved for uniform rotations; HD is close to one but for vectors of few numbers.)

    Args:
        bits: 1 to 4 of them. With 1 it is DRIVE, and written `drive`.
        unbiased: which scale.
    """

    bits: int
    unbiased: bool = False

    def __post_init__(self) -> None:
        self._require("bits", 1 <= self.bits <= 4, "must lie between 1 and 4")

    @property
    def name(self) -> str:
        return "drive" if self.bits == 1 else "eden"

    @property
    def text(self) -> str:
        parts = [str(self.bits)] * (self.bits > 1) + ["unbiased"] * self.unbiased
        return ":".join([self.name, *([",".join(parts)] if parts else [])])

    @property
    def contracts(self) -> bool:
        return not self.unbiased

    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        blocks = _blocks(size_of(shape))
        padded = sum(rows * size for rows, size in blocks)
        return {
            "numbers": (torch.uint8, (packing.nbytes(padded, self.bits),)),
            "scales": (torch.float32, (sum(rows for rows, _ in blocks),)),
            "key": (torch.int64, ()),
        }

    def encode(self, value: Tensor, key: Tensor) -> Record:
        flat, numbers, scales = value.reshape(-1).float(), [], []
        for at, rows in enumerate(_cut(flat)):
            turned = hadamard(rows * _signs(key, at, rows.shape))
            norms = turned.square().sum(1, keepdim=True)
            size = rows.shape[1]
            index = self._nearest(turned * torch.rsqrt(torch.where(norms == 0, 1.0, norms) / size))
            near = self._centroids(index)
            along = (turned * near).sum(1)
            if self.unbiased:
                scales.append(norms[:, 0] / torch.where(along == 0, 1.0, along))
            else:
                scales.append(along / near.square().sum(1))
            numbers.append(index.reshape(-1))
        return Record(
            numbers=packing.packed(torch.cat(numbers), self.bits), scales=torch.cat(scales), key=key
        )

    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        size = size_of(shape)
        blocks = _blocks(size)
        index = packing.unpacked(sent.numbers, sum(rows * length for rows, length in blocks), self.bits)
        found, start, first = [], 0, 0
        for at, (rows, length) in enumerate(blocks):
            near = self._centroids(index[start : start + rows * length].reshape(rows, length))
            turned = near * sent.scales[first : first + rows, None]
            found.append((hadamard(turned) * _signs(sent.key, at, (rows, length))).reshape(-1))
            start, first = start + rows * length, first + rows
        return torch.cat(found)[:size].reshape(tuple(shape))

    def _nearest(self, normal: Tensor) -> Tensor:
        """Which centroid: its sign in the lowest bit, how far out it is above it; int64."""
        levels = CENTROIDS[self.bits]
        far = normal.abs()
        index = torch.zeros_like(normal, dtype=torch.int64)
        for low, high in pairwise(levels):
            index = index + (far > (low + high) / 2)
        return 2 * index + (normal < 0)

    def _centroids(self, index: Tensor) -> Tensor:
        levels = torch.tensor(CENTROIDS[self.bits], device=index.device)
        return levels[index >> 1] * (1.0 - 2.0 * (index & 1))


def _blocks(size: int) -> list[tuple[int, int]]:
    """How so many numbers are cut: (blocks, length of each), and of the rest, which is filled up to a power of two."""
    whole, rest = divmod(size, _BLOCK)
    found = [(whole, _BLOCK)] if whole else []
    return [*found, (1, 1 << (rest - 1).bit_length())] if rest else found


def _cut(flat: Tensor) -> list[Tensor]:
    parts, start = [], 0
    for rows, length in _blocks(flat.numel()):
        part = flat[start : start + rows * length]
        parts.append(pad(part, (0, rows * length - part.numel())).reshape(rows, length))
        start += rows * length
    return parts


def _signs(key: Tensor, at: int, shape: Sequence[int]) -> Tensor:
    """Random signs for a part."""
    return torch.where(seeds.uniform(seeds.fold(key, at), shape) < 0.5, -1.0, 1.0)
