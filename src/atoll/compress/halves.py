"""Numbers of 16 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from atoll.compress.codec import Codec, size_of
from atoll.tensors import Record

__all__ = ["Half"]

_KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Half(Codec):
    """Numbers of 16 bits, rounded to the nearest: half the bytes.

    bf16 has the range of float32 and a relative error of up to 2^-9; fp16 one of 2^-12 between 6e-5 and 65504, and what
    lies above comes out infinite.
    """

    kind: Literal["bf16", "fp16"]

    close = True
    again = True

    @property
    def name(self) -> str:
        return self.kind

    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"numbers": (_KINDS[self.kind], (size_of(shape),))}

    def encode(self, value: Tensor, key: Tensor) -> Record:
        return Record(numbers=value.reshape(-1).to(_KINDS[self.kind]))

    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        return sent.numbers.float().reshape(tuple(shape))  # type: ignore[no-any-return]
