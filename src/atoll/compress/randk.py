"""Numbers drawn by lot, whose places follow from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll import seeds
from atoll.compress.codec import Codec, size_of
from atoll.compress.topk import kept
from atoll.tensors import Record

__all__ = ["RandK"]


@dataclass(frozen=True)
class RandK(Codec):
    """A share of the numbers, drawn by lot and made larger in proportion.   Konecny et al., 2016, "random mask"

    The n numbers are cut into k runs of n/k, one more or less, and one of each run is drawn: every number with the
    chance k/n. Nothing but the seed says where they were. The mean is right, the variance (n/k - 1) |x|^2.

    Args:
        share: k / n.
    """

    share: float

    name = "randk"
    unbiased = True
    contracts = False
    linear = True

    def __post_init__(self) -> None:
        self._require(
            "share", 0 < self.share <= 1, "must be above 0, and at most 1", "0.1 keeps one number of ten"
        )

    @property
    def text(self) -> str:
        return f"{self.name}:{self.share:g}"

    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"numbers": (torch.float32, (kept(size_of(shape), self.share),)), "key": (torch.int64, ())}

    def encode(self, value: Tensor, key: Tensor) -> Record:
        flat = value.reshape(-1).float()
        places, widths = self._drawn(key, flat.numel())
        unsound = flat.sum() * 0  # nan where a number is not finite, whether it was drawn or not
        return Record(numbers=flat.gather(0, places) * widths + unsound, key=key)

    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        size = size_of(shape)
        places, _ = self._drawn(sent.key, size)
        return torch.zeros(size, device=places.device).scatter(0, places, sent.numbers).reshape(tuple(shape))

    def _drawn(self, key: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """One place of each run, and how long the run is: [k] each."""
        many = kept(size, self.share)
        ends = torch.arange(many + 1, device=key.device) * size // many
        widths = ends[1:] - ends[:-1]
        steps = (seeds.uniform(key, (many,)).double() * widths).long()
        return ends[:-1] + steps, widths
