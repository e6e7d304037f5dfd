"""Updates as rows, piece by piece: what a rule reads of them, without a copy of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Matrix", "Rows"]

Matrix = NDArray[np.float64]

_PIECE = 1 << 19
"""Numbers of all rows that are looked at together: they stay in a core's cache."""

_SAMPLE = 4096


class Rows:
    """Vectors of one size, each in parts of any shape (the tensors of an update).

    Args:
        rows: the parts of each, of the same shapes in the same order.
    """

    def __init__(self, rows: Sequence[Sequence[Tensor]]) -> None:
        self.shapes = [part.shape for part in rows[0]]
        self._rows = [[_wide(part).reshape(-1) for part in row] for row in rows]
        self.size = sum(part.numel() for part in self._rows[0])

    def __len__(self) -> int:
        return len(self._rows)

    def pieces(self, extra: int = 0) -> Iterator[Tensor]:
        """The rows' numbers, [rows, k], and `extra` rows of zeros behind; always cut in the same places."""
        for part in range(len(self.shapes)):
            for start, stop in self._cuts(part):
                yield self._piece(part, start, stop, extra)

    def combined(self, weights: Sequence[float] | Matrix) -> list[Tensor]:
        """The sum of the rows by these weights, in parts as they came."""
        found = []
        for part, shape in enumerate(self.shapes):
            total = torch.zeros_like(self._rows[0][part])
            for row, weight in zip(self._rows, weights, strict=True):
                if weight != 0.0:
                    total.add_(row[part], alpha=float(weight))
            found.append(total.reshape(shape))
        return found

    def mapped(self, function: Callable[[Tensor], Tensor], mix: Matrix) -> list[Tensor]:
        """What a function makes of every coordinate of mixed rows, `mix` [m, rows]: of [k, m], contiguous, [k]."""
        found = []
        for part, shape in enumerate(self.shapes):
            flat = torch.empty_like(self._rows[0][part])
            for start, stop in self._cuts(part):
                flat[start:stop] = function(_mixed(self._piece(part, start, stop), mix).t().contiguous())
            found.append(flat.reshape(shape))
        return found

    def sample(self, mix: Matrix) -> Tensor:
        """Coordinates of mixed rows [k, m], evenly spaced, 4,096 or a few more at most."""
        step = -(-self.size // _SAMPLE)
        rows = torch.stack([torch.cat([part[::step] for part in row]) for row in self._rows])
        return _mixed(rows, mix).t().contiguous()

    def _cuts(self, part: int) -> Iterator[tuple[int, int]]:
        size, width = self._rows[0][part].numel(), max(256, _PIECE // len(self))
        for start in range(0, size, width):
            yield start, min(start + width, size)

    def _piece(self, part: int, start: int, stop: int, extra: int = 0) -> Tensor:
        first = self._rows[0][part]
        found = first.new_empty((len(self) + extra, stop - start))
        torch.stack([row[part][start:stop] for row in self._rows], out=found[: len(self)])
        found[len(self) :] = 0
        return found


def _mixed(rows: Tensor, mix: Matrix) -> Tensor:
    """The matrix [m, n] times rows [n, k]; itself where it is the identity."""
    if mix.shape[0] == mix.shape[1] and np.array_equal(mix, np.eye(len(mix))):
        return rows
    return torch.from_numpy(mix).to(rows) @ rows


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
