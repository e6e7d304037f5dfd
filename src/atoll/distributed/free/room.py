"""Memory that two processes or more have in common, with a model's tensors in it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from atoll.distributed.free.frames import Refused
from atoll.distributed.learner import Replica

__all__ = ["Room", "packed", "unpack"]

_ALIGN = 64  # as torch aligns its own memory

try:
    import fcntl

    _SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
except (ImportError, AttributeError):  # pragma: no cover - not on this system: `Free.check` says so
    fcntl = None  # type: ignore[assignment]


class Room:
    """Parameters [n], their gradient [n], and a model's buffers as bytes [m], where all who have the room see them.

    A worker makes it and hands it to servers with its first frame: after that only headers travel. Its length is
    sealed, so that nobody can take memory away that another reads.

    Args:
        like: a model, which says how much there is.
        descriptor: of a room that another has made; without one it is made.
    """

    def __init__(self, like: Replica, descriptor: int | None = None) -> None:
        kind, width = like.params.dtype, like.params.element_size()
        sizes = [like.size * width, like.size * width, len(packed(like.module))]
        starts = np.cumsum([0, *(-(-size // _ALIGN) * _ALIGN for size in sizes)]).tolist()
        length = max(starts[-1], _ALIGN)
        if descriptor is None:
            self.descriptor = os.memfd_create("atoll", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.descriptor, length)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
        else:
            self.descriptor = descriptor
            if os.fstat(descriptor).st_size != length or fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) != _SEALS:
                raise Refused("the memory that a worker has made is not as it should be")
        whole = torch.from_numpy(np.frombuffer(mmap.mmap(self.descriptor, length), np.uint8))
        params, gradient, self.buffers = (
            whole[start : start + size] for start, size in zip(starts, sizes, strict=False)
        )
        self.params, self.gradient = params.view(kind), gradient.view(kind)

    def lay(self, replica: Replica) -> None:
        """Have a model's parameters, gradients and buffers lie here, with the values that are here."""
        at = 0
        for _, p in replica.names:
            part = slice(at, at + p.numel())
            p.data, p.grad = self.params[part].view_as(p), self.gradient[part].view_as(p)
            at += p.numel()
        replica.params, replica.grads = self.params, self.gradient
        for b, own in _places(replica.module):
            b.data = self.buffers[own].view(b.dtype).view(b.shape)


def packed(module: nn.Module) -> Tensor:
    """A module's buffers, as bytes [m]."""
    places = list(_places(module))
    found = torch.zeros(places[-1][1].stop if places else 0, dtype=torch.uint8)
    for b, own in places:
        found[own] = b.detach().contiguous().view(-1).view(torch.uint8)
    return found


def unpack(module: nn.Module, found: Tensor) -> None:
    """The other way."""
    for b, own in _places(module):
        b.detach().copy_(found[own].view(b.dtype).view(b.shape))


def _places(module: nn.Module) -> Iterator[tuple[Tensor, slice]]:
    """Where buffers lie among all."""
    at = 0
    for b in module.buffers():
        yield b, slice(at, at + b.nbytes)
        at += -(-b.nbytes // _ALIGN) * _ALIGN
