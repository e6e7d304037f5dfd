"""The largest numbers, and where they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll.compress.codec import Codec, size_of
from atoll.errors import CodecError
from atoll.tensors import Record

__all__ = ["TopK", "kept"]

_BLOCK = 1 << 16


def kept(size: int, share: float) -> int:
    """How many of so many numbers are a share of them, at least one."""
    return min(size, max(1, round(share * size)))


@dataclass(frozen=True)
class TopK(Codec):
    """The share of numbers that are largest; the others are 0.   Stich et al., NeurIPS 2018

    |x - c(x)|^2 <= (1 - k/n) |x|^2. A place takes two bytes, counted within its block of 65536, so that a number
    that is kept takes 6 bytes: at a share of 0.01 there are 66 times fewer.

    Args:
        share: k / n.
    """

    share: float

    name = "topk"

    def __post_init__(self) -> None:
        self._require(
            "share",
            0 < self.share <= 1,
            "must be above 0, and at most 1",
            "0.01 keeps one number of a hundred",
        )

    @property
    def text(self) -> str:
        return f"{self.name}:{self.share:g}"

    @property
    def close(self) -> bool:
        return self.share >= 0.5  # the smaller half of normal numbers has 0.072 of |x|^2

    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        size = size_of(shape)
        many = kept(size, self.share)
        return {
            "numbers": (torch.float32, (many,)),
            "places": (torch.int16, (many,)),
            "counts": (torch.int32, (-(-size // _BLOCK),)),
        }

    def encode(self, value: Tensor, key: Tensor) -> Record:
        flat = value.reshape(-1).float()
        places = self._places(flat).sort().values
        counts = torch.bincount(places // _BLOCK, minlength=-(-flat.numel() // _BLOCK))
        within = (places % _BLOCK) - _BLOCK // 2
        return Record(numbers=flat[places], places=within.to(torch.int16), counts=counts.to(torch.int32))

    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        size, counts = size_of(shape), sent.counts.long()
        if int(counts.min()) < 0 or int(counts.sum()) != len(sent.places):
            raise CodecError(
                "the counts of places are not those of the places", hint="it was damaged, or made up"
            )
        first = torch.arange(0, size, _BLOCK, device=counts.device).repeat_interleave(counts)
        places = first + sent.places.long() + _BLOCK // 2
        if int(places[-1]) >= size or not bool((places[1:] > places[:-1]).all()):
            raise CodecError(
                "the places do not rise, or go beyond the end", hint="it was damaged, or made up"
            )
        found = torch.zeros(size, device=counts.device)
        found[places] = sent.numbers
        return found.reshape(tuple(shape))

    def through(self, value: Tensor, key: Tensor) -> Tensor:
        flat = value.reshape(-1).float()
        places = self._places(flat)
        return torch.zeros_like(flat).scatter(0, places, flat.gather(0, places)).reshape(value.shape)

    def _places(self, flat: Tensor) -> Tensor:
        return torch.topk(flat.abs(), kept(flat.numel(), self.share), sorted=False).indices
