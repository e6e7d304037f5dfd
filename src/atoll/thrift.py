"""Gradients in fewer bits, a part of the batch at a time, or block by block: the same steps in less memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch

__all__ = ["Precision", "Thrift"]

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Thrift:
    """How a client computes.

    Args:
        precision: of the operations that can be so computed; parameters, their gradients and updates stay as they are.
        accumulate: goes in which the gradient of a batch is taken: activations of so much less are held at a time.
        recompute: whether the backward pass computes each block of a transformer again (see `blocks`).
    """

    precision: Precision = "float32"
    accumulate: int = 1
    recompute: bool = False

    def cast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Inside, operations that can compute in the precision do."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    def single(self, outputs: torch.Tensor) -> torch.Tensor:
        """A model's outputs as losses take them: of few bits, too, they are summed and exponentiated in float32."""
        few = self.precision != "float32" and outputs.is_floating_point()
        return outputs.float() if few else outputs

    def goes(self, rows: int) -> list[slice]:
        """The parts of a batch of so many rows, as even as can be; none is empty."""
        count = min(self.accumulate, rows)
        ends = [rows * k // count for k in range(count + 1)]
        return [slice(a, b) for a, b in pairwise(ends)]
