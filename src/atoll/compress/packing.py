"""Small whole numbers without gaps between them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["nbytes", "packed", "unpacked"]


def nbytes(count: int, bits: int) -> int:
    """Bytes that so many numbers of so many bits take."""
    return -(-count * bits // 8)


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Whole numbers [n] in [0, 2^bits), bits up to 8, as uint8 [nbytes(n, bits)]; the lowest bits come first."""
    if bits == 8:
        return numbers.to(torch.uint8)
    count = numbers.numel()
    if bits == 4:  # the same in less room
        low, high = pad(numbers.to(torch.uint8), (0, count % 2)).reshape(-1, 2).unbind(1)
        return low | high << 4
    eight = pad(numbers.to(torch.int64), (0, -count % 8)).reshape(-1, 8)  # as many bytes as a number has bits
    word = eight[:, 0]
    for at in range(1, 8):
        word = word | (eight[:, at] << (bits * at))
    octets = torch.stack([(word >> (8 * at)) & 255 for at in range(bits)], 1)
    return octets.reshape(-1)[: nbytes(count, bits)].to(torch.uint8)


def unpacked(octets: Tensor, count: int, bits: int) -> Tensor:
    """The inverse of `packed`, for so many numbers: int64 [count]."""
    if bits == 8:
        return octets.to(torch.int64)
    rows = pad(octets.to(torch.int64), (0, -octets.numel() % bits)).reshape(-1, bits)
    word = rows[:, 0]
    for at in range(1, bits):
        word = word | (rows[:, at] << (8 * at))
    eight = torch.stack([(word >> (bits * at)) & ((1 << bits) - 1) for at in range(8)], 1)
    return eight.reshape(-1)[:count]
