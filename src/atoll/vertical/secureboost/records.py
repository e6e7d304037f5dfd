"""Arrays as tensors of a record, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["as_array", "as_tensor", "packed_bits", "unpacked_bits"]


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A copy."""
    return torch.from_numpy(np.array(array, copy=True, order="C"))


def as_array(tensor: Tensor) -> NDArray[Any]:
    """The same memory."""
    return tensor.detach().cpu().numpy()


def packed_bits(flags: NDArray[np.bool_]) -> Tensor:
    """Flags [..., n] as uint8 [..., ceil(n / 8)]."""
    return torch.from_numpy(np.packbits(flags, axis=-1))


def unpacked_bits(tensor: Tensor, count: int) -> NDArray[np.bool_]:
    """The other way round."""
    return np.unpackbits(as_array(tensor), axis=-1, count=count).view(np.bool_)
