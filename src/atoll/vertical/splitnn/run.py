"""What hosts and the guest do alike in a run: batches, statistics, entries that are used again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atoll import seeds

__all__ = ["Rows", "Workset", "batches", "likeness", "slices"]

Rows = Tensor
"""Numbers of rows, int64 [b]."""

ASKED = 4096  # rows in a message when scores are wanted

_LIKE = 0.5  # a cosine below which an old message is not used: 60 degrees


def batches(seed: int, epoch: int, rows: int, size: int) -> list[Rows]:
    """The batches of an epoch, which every party draws for itself; a single row at the end goes to the batch before."""
    order = torch.from_numpy(seeds.rng(seed, "split.order", epoch).permutation(rows))
    ends = list(range(size, rows, size))
    if ends and rows - ends[-1] == 1:
        ends.pop()
    return [order[a:b] for a, b in zip([0, *ends], [*ends, rows], strict=True)]


def slices(rows: int) -> list[slice]:
    """All rows in their order, in messages."""
    return [slice(a, min(a + ASKED, rows)) for a in range(0, rows, ASKED)]


class Workset:
    """Messages that are used for further steps: the last ones, in turn.

    With room for one it is FedBCD's (Liu et al. 2019): `again` steps with what the others said of this batch. With more
    it is CELU-VFL's table (Fu et al., VLDB 2022), where rows count by how alike what was said then is to what would be
    said now (`likeness`). It begins empty in each epoch.
    """

    def __init__(self, room: int, again: int) -> None:
        self.room, self.again = max(room, 1), again
        self.weighed = room > 0
        self._held: list[Any] = []
        self._turn = 0

    def clear(self) -> None:
        self._held, self._turn = [], 0

    def add(self, entry: Any) -> None:
        self._held = [*self._held, entry][-self.room :]

    def turns(self) -> list[Any]:
        """The entries of the steps that follow an exchange."""
        if not self.again:
            return []
        found = [self._held[-1 - (self._turn + step) % len(self._held)] for step in range(self.again)]
        self._turn = (self._turn + self.again) % self.room
        return found


def likeness(old: Sequence[Tensor], new: Sequence[Tensor]) -> Tensor:
    """A weight for each row, [b]: the cosine of what was said and what would be said, 0 where it is below 1/2.

    Args:
        old, new: [b, d] each, joined.
    """
    cosine = torch.cosine_similarity(torch.cat(list(old), 1), torch.cat(list(new), 1), dim=1)
    return torch.where(cosine >= _LIKE, cosine, 0.0)
