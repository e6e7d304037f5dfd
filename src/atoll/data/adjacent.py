"""Tensors that lie one after the other in memory, such as the slices of one array, as one tensor without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["in_a_row"]


class _Row:
    """Memory for NumPy, which keeps this alive, and so the tensors to whom it belongs."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = list(parts)
        interface: dict[str, Any] = dict(parts[0].numpy().__array_interface__)
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        self.__array_interface__ = {**interface, "shape": shape, "strides": None}


def in_a_row(parts: Sequence[Tensor]) -> Tensor | None:
    """`torch.cat(parts)` as a view of where they are; None where they do not lie there one after the other."""
    first = parts[0]
    for part in parts:
        if (
            part.layout != torch.strided
            or part.device.type != "cpu"
            or part.requires_grad
            or part.is_neg()
            or part.is_conj()
            or part.dtype in (torch.bfloat16, torch.complex32)  # NumPy has no such numbers
            or part.dtype != first.dtype
            or part.ndim == 0
            or part.shape[1:] != first.shape[1:]
            or part.numel() == 0
            or not part.is_contiguous()
        ):
            return None
    if any(one.data_ptr() + one.nbytes != other.data_ptr() for one, other in pairwise(parts)):
        return None
    return torch.from_numpy(np.asarray(_Row(parts)))
