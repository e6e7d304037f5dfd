"""A matrix as the product of two thin ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll import seeds
from atoll.compress.codec import Codec, size_of
from atoll.tensors import Record

__all__ = ["PowerSGD"]


@dataclass(frozen=True)
class PowerSGD(Codec):
    """A matrix M [m, n] as P Q^T with `rank` columns each.   Vogels et al., NeurIPS 2019, Algorithm 1

    P = orthogonal basis of M G, Q = M^T P, with normal G: one step of subspace iteration, which begins anew every time.
    Exact where M has no higher rank. The first dimension makes the rows, the others the columns; 4 r (m + n) bytes.

    Args:
        rank: r.
    """

    rank: int

    name = "powersgd"
    apart = True

    def __post_init__(self) -> None:
        self._require("rank", self.rank >= 1, "must be 1 or above")

    @property
    def text(self) -> str:
        return f"{self.name}:{self.rank}"

    def _sides(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Rows, columns, and how many of each travel."""
        rows = shape[0] if len(shape) > 1 else 1
        columns = size_of(shape) // max(rows, 1)
        return rows, columns, min(self.rank, rows, columns)

    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        rows, columns, rank = self._sides(shape)
        return {"left": (torch.float32, (rows, rank)), "right": (torch.float32, (columns, rank))}

    def encode(self, value: Tensor, key: Tensor) -> Record:
        rows, columns, rank = self._sides(value.shape)
        matrix = value.reshape(rows, columns).float()
        left, _ = torch.linalg.qr(matrix @ seeds.normal(key, (columns, rank)))
        return Record(left=left, right=matrix.T @ left)

    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        return (sent.left @ sent.right.T).reshape(tuple(shape))  # type: ignore[no-any-return]
