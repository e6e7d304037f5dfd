"""Numbers as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll.compress.codec import Codec, size_of
from atoll.tensors import Record

__all__ = ["Same"]


@dataclass(frozen=True)
class Same(Codec):
    """Numbers as they are, float32, in fewer bytes without loss; also behind a codec: bf16 + zstd

    The numbers alone, that is; `atoll.compress.entropy` packs the bytes of whatever stands before it.
    """

    name = "zstd"
    close = True
    again = True

    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"numbers": (torch.float32, (size_of(shape),))}

    def encode(self, value: Tensor, key: Tensor) -> Record:
        return Record(numbers=value.reshape(-1).float())

    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        return sent.numbers.reshape(tuple(shape))  # type: ignore[no-any-return]
