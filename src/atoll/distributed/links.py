"""What workers say to each other, counted: bytes that a worker sends, and the time it waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from atoll import codec
from atoll.tensors import Record

__all__ = ["Links", "Solo"]

# Newer versions of torch have new names for these two, and warn of the old ones.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Links:
    """The collectives of a group of workers.

    Every worker of the group calls the same ones in the same order. `nbytes` are the bytes that this worker has sent,
    by what the algorithm needs at least where torch does not say (a ring: 2 (W - 1) / W of the tensor for a sum), and
    `seconds` how long it has been in them.

    Args:
        group: the group, or None for all workers.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.nbytes, self.seconds = 0.0, 0.0

    @contextmanager
    def counted(self, nbytes: float) -> Iterator[None]:
        """Inside, so many bytes are sent."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began
        self.nbytes += nbytes

    def _between(self, value: Tensor) -> Tensor:
        """Where a tensor goes through: gloo sends nothing from a GPU's memory, and sums only."""
        gloo = value.is_cuda and dist.get_backend(self.group) == "gloo"
        return value.cpu() if gloo else value

    def peer(self, rank: int) -> int:
        """The number among all workers of one of this group."""
        return rank % self.size if self.group is None else dist.get_global_rank(self.group, rank % self.size)

    # --- collectives ------------------------------------------------------------------------------------------

    def sum(self, value: Tensor) -> Tensor:
        """The sum over workers, in place."""
        with self.counted(2 * (self.size - 1) / self.size * _size(value)):
            dist.all_reduce(value, group=self.group)
        return value

    def most(self, value: Tensor) -> Tensor:
        """The largest over workers, number by number, in place."""
        with self.counted(2 * (self.size - 1) / self.size * _size(value)):
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group)
        return value

    def scattered(self, value: Tensor) -> Tensor:
        """This worker's part of the sum: [n] with n a multiple of W becomes [n / W]."""
        there = self._between(value)
        part = there.new_empty(len(value) // self.size)
        with self.counted((self.size - 1) / self.size * _size(value)):
            _reduce_scatter(part, there, group=self.group)
        return part.to(value.device)

    def gathered(self, part: Tensor, whole: Tensor | None = None) -> Tensor:
        """All workers' parts [n], one after the other [W n]; into `whole`, if it is given."""
        whole = part.new_empty(self.size * len(part)) if whole is None else whole
        there = self._between(part)
        room = whole if there is part else torch.empty_like(whole, device=there.device)
        with self.counted((self.size - 1) * _size(part)):
            _all_gather(room, there, group=self.group)
        return whole if room is whole else whole.copy_(room)

    def spread(self, value: Tensor) -> Tensor:
        """The first worker's value, in place."""
        with self.counted(_size(value) if self.rank == 0 else 0):
            dist.broadcast(value, self.peer(0), group=self.group)
        return value

    def swap(self, given: Tensor, room: Tensor) -> Tensor:
        """To the next worker of the ring `given`, and into `room` what the one before gives."""
        there = self._between(given)
        come = room if there is given else torch.empty_like(room, device=there.device)
        with self.counted(_size(given)):
            sent = dist.isend(there, self.peer(self.rank + 1), group=self.group)
            dist.recv(come, self.peer(self.rank - 1), group=self.group)
            if sent is not None:
                sent.wait()
        return room if come is room else room.copy_(come)

    # --- records ----------------------------------------------------------------------------------------------

    def collected(self, record: Record) -> list[Record]:
        """Every worker's record, at the first worker; elsewhere nothing. Records may differ in form."""
        blob = torch.frombuffer(bytearray(codec.encode(record)), dtype=torch.uint8)
        sizes = self._sizes(len(blob))
        if self.rank:
            with self.counted(len(blob)):
                dist.send(blob, self.peer(0), group=self.group)
            return []
        found = [record]
        for rank, size in enumerate(sizes[1:], 1):
            room = torch.empty(size, dtype=torch.uint8)
            dist.recv(room, self.peer(rank), group=self.group)
            found.append(codec.decode(room.numpy().tobytes()))
        return found

    def told(self, record: Record | None) -> Record:
        """The first worker's record, at every worker."""
        blob = torch.empty(0, dtype=torch.uint8)
        if self.rank == 0:
            assert record is not None
            blob = torch.frombuffer(bytearray(codec.encode(record)), dtype=torch.uint8)
        size = self._sizes(len(blob))[0]
        blob = blob if self.rank == 0 else torch.empty(size, dtype=torch.uint8)
        self.spread(blob)
        return record if record is not None else codec.decode(blob.numpy().tobytes())

    def _sizes(self, size: int) -> Sequence[int]:
        every = torch.zeros(self.size, dtype=torch.int64)
        every[self.rank] = size
        dist.all_reduce(every, group=self.group)
        return every.tolist()


class Solo(Links):
    """The links of a worker that is in no group: for itself it is all workers."""

    def __init__(self, rank: int) -> None:
        self.rank, self.size = rank, 1
        self.nbytes, self.seconds = 0.0, 0.0


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()
