"""A few bits a number after a random rotation, which makes all vectors look normal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
    """Rows [n, size], size a power of two up to 4096, times the orthogonal Hadamard matrix: its own inverse.

    The matrix is the Kronecker product of two that have no more than 64 rows.
    """
    count, size = rows.shape
    low = min(size, 64)
    high = size // low
    turned = rows.reshape(count * high, low) @ _matrix(low).to(rows.device)
    if high > 1:
        turned = _matrix(high).to(rows.device) @ turned.reshape(count, high, low)
    return turned.reshape(count, size)


@lru_cache(maxsize=8)
def _matrix(size: int) -> Tensor:
    found = torch.ones(1, 1)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found / math.sqrt(size)


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

    @property
    def close(self) -> bool:
        return self.bits > 1

    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        blocks = _blocks(size_of(shape))
        padded = sum(rows * size for rows, size in blocks)
        return {
            "numbers": (torch.uint8, (packing.nbytes(padded, self.bits),)),
            "scales": (torch.float32, (sum(rows for rows, _ in blocks),)),
            "key": (torch.int64, ()),
        }

    def encode(self, value: Tensor, key: Tensor) -> Record:
        found = [self._nearest(rows * signs) for rows, signs in _cut(value, key)]
        numbers = torch.cat([index.reshape(-1) for index, _, _ in found])
        scales = torch.cat([scale for _, _, scale in found])
        return Record(numbers=packing.packed(numbers, self.bits), scales=scales, key=key)

    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        size = size_of(shape)
        blocks = _blocks(size)
        index = packing.unpacked(sent.numbers, sum(rows * length for rows, length in blocks), self.bits)
        levels = torch.tensor(CENTROIDS[self.bits], device=index.device)
        near = levels[index >> 1] * (1.0 - 2.0 * (index & 1))
        found, start, first = [], 0, 0
        for at, (rows, length) in enumerate(blocks):
            part = near[start : start + rows * length].reshape(rows, length)
            turned = hadamard(part * sent.scales[first : first + rows, None])
            found.append((turned * _signs(sent.key, at, rows, length)).reshape(-1))
            start, first = start + rows * length, first + rows
        return torch.cat(found)[:size].reshape(tuple(shape))

    def through(self, value: Tensor, key: Tensor) -> Tensor:
        found = []
        for rows, signs in _cut(value, key):
            _, near, scales = self._nearest(rows * signs)
            found.append((hadamard(near * scales[:, None]) * signs).reshape(-1))
        return torch.cat(found)[: value.numel()].reshape(value.shape)

    def _nearest(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows to be turned: which centroids (uint8, the sign in the lowest bit), they themselves, the scales."""
        turned, levels = hadamard(rows), CENTROIDS[self.bits]
        norms = turned.square().sum(1)
        unit = torch.sqrt(torch.where(norms == 0, 1.0, norms) / rows.shape[1])[:, None]
        far, below = turned.abs(), turned < 0
        near, index = torch.full_like(turned, levels[0]), torch.zeros_like(turned, dtype=torch.uint8)
        for low, high in pairwise(levels):
            beyond = far > unit * ((low + high) / 2)
            near, index = torch.where(beyond, high, near), index + beyond
        near = torch.where(below, -near, near)
        along = (turned * near).sum(1)
        if self.unbiased:
            scales = norms / torch.where(along == 0, 1.0, along)
        else:
            scales = along / near.square().sum(1)
        return 2 * index + below, near, scales


def _blocks(size: int) -> list[tuple[int, int]]:
    """How so many numbers are cut: (blocks, length of each), and of the rest, which is filled up to a power of two."""
    whole, rest = divmod(size, _BLOCK)
    found = [(whole, _BLOCK)] if whole else []
    return [*found, (1, 1 << (rest - 1).bit_length())] if rest else found


def _cut(value: Tensor, key: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The blocks of a value, in rows of one length, and the signs of the numbers in them."""
    flat, start = value.reshape(-1).float(), 0
    for at, (rows, length) in enumerate(_blocks(flat.numel())):
        part = flat[start : start + rows * length]
        yield (
            pad(part, (0, rows * length - part.numel())).reshape(rows, length),
            _signs(key, at, rows, length),
        )
        start += rows * length


def _signs(key: Tensor, at: int, rows: int, length: int) -> Tensor:
    """Random signs for a part, sixteen of each number that is drawn."""
    words = -(-rows * length // 16)
    drawn = (seeds.uniform(seeds.fold(key, at), (words,)) * (1 << 16)).to(torch.int32)
    bits = (drawn[:, None] >> torch.arange(16, dtype=torch.int32, device=key.device)) & 1
    return (1.0 - 2.0 * bits.float()).reshape(-1)[: rows * length].reshape(rows, length)
