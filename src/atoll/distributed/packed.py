"""Sums over workers of what codecs make smaller: everybody sends what a codec gives, and adds what it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from atoll import seeds
from atoll.compress import Codec
from atoll.distributed.links import Links
from atoll.tensors import Record

__all__ = ["packed_sum"]


def packed_sum(
    value: Tensor, shapes: Sequence[tuple[int, ...]], codec: Codec, links: Links, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """The sum over workers of what comes back of their values, and what comes back of this one's.

    Everybody sends to everybody: (W - 1) times the bytes of the codec, where a ring sends 2 (W - 1) / W times those of
    the value. Sums are taken in the order of the workers, so that all have the same bits.

    Args:
        value: float32 [n].
        shapes: of the tensors that lie in it one after the other; codecs that look at rows take each by itself.
        seed, step: the address of what codecs draw, with the worker's number.
    """
    total, mine, at = torch.empty_like(value), torch.empty_like(value), 0
    for number, shape in enumerate(_cut(value, shapes, codec)):
        part = slice(at, at + torch.Size(shape).numel())
        address = seeds.address(seed, f"train.codec.{number}", step, links.rank)
        key = torch.tensor(address, device=value.device)
        sent = codec.encode(value[part].view(shape), key)
        form = codec.form(shape)
        octets = torch.cat([sent[name].contiguous().reshape(-1).view(torch.uint8) for name in form])
        every = links.gathered(octets).view(links.size, -1)
        found = [codec.decode(_record(row, form), shape).reshape(-1) for row in every]
        mine[part] = found[links.rank]
        total[part] = torch.stack(found).sum(0)
        at = part.stop
    total[at:] = mine[at:] = 0  # padding
    return total, mine


def _cut(value: Tensor, shapes: Sequence[tuple[int, ...]], codec: Codec) -> Sequence[tuple[int, ...]]:
    if not codec.apart:
        return [(len(value),)]
    return [_two(shape) for shape in shapes]


def _two(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns of a tensor of more dimensions."""
    return shape if len(shape) <= 2 else (shape[0], torch.Size(shape[1:]).numel())


def _record(row: Tensor, form: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Record:
    """The record whose tensors' bytes lie one after the other."""
    found, at = {}, 0
    for name, (dtype, shape) in form.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        found[name] = row[at : at + size].clone().view(dtype).reshape(shape)
        at += size
    return Record(found)
