"""A worker of a parameter server: a gradient goes, and fresh parameters come."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from atoll.distributed.free import frames
from atoll.distributed.free.frames import Frame, Line
from atoll.distributed.free.room import Room
from atoll.distributed.free.shard import cut
from atoll.distributed.learner import Replica
from atoll.distributed.play import draw
from atoll.distributed.reading import Share

if TYPE_CHECKING:
    from atoll.distributed.play import Job

__all__ = ["part_of", "push"]


def push(job: Job, replica: Replica, rank: int, doors: Sequence[Path], token: bytes) -> None:
    """Until the first server has nothing more to read.  Raises ConnectionError where one is gone."""
    room, timeout = Room(replica), job.training.timeout
    room.lay(replica)
    sizes = [room.params[part].nbytes for part in cut(replica.size, len(doors))]
    lines = [Line(doors[0], token, rank, timeout, room.descriptor)]
    told = lines[0].told(sizes[0])
    begin = job.steps if told.step < 0 else min(told.step, job.steps)
    lines += [Line(door, token, rank, timeout, room.descriptor, begin) for door in doors[1:]]
    for line, size in zip(lines[1:], sizes[1:], strict=True):
        line.told(size)
    waited = 0.0
    while told.step >= 0:
        share = part_of(job, told.step, told.part)
        replica.grads.zero_()
        loss = float(replica.backward(share)) * share.count
        with torch.no_grad():
            replica.limit()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        frame = Frame(
            frames.PUSH, rank, told.part, len(share.rows), told.step, told.version, loss, waited, memory
        )
        began = time.perf_counter()
        for line, size in zip(lines, sizes, strict=True):
            line.push(frame._replace(size=size))
        told, *_ = [line.told(size) for line, size in zip(lines, sizes, strict=True)]
        waited = time.perf_counter() - began
    for line in lines:
        line.close()


def part_of(job: Job, step: int, part: int) -> Share:
    """What is read as that part of a step; what it draws is made its own."""
    draw(job, step, part)
    share = job.reading.share(step, part)
    return Share(share.rows, max(1, len(share.rows))) if job.strategy.local else share
