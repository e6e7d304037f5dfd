"""Numbers in order."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ordered", "ranks"]


def ordered(values: Tensor) -> Tensor:
    """Each row in ascending order, [k, m]; may write into `values`, which is contiguous.

    In main memory numpy sorts: it has whole vectors compared, which takes a fifth of the time of finding a median.
    """
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    values.numpy().sort(axis=1)
    return values


def ranks(values: Tensor) -> Tensor:
    """The place of each number in its row, from 0, [k, m]; of equal ones the first is lower."""
    order = values.argsort(dim=1, stable=True)
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(values.shape[1], device=values.device).expand_as(order)
    )
