"""Long work in forked processes, which see all that is there and send back bytes."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from atoll.he.layout import Octets

__all__ = ["forked", "shared"]

Work = Callable[[int, int], Octets]
"""Does a part of it, from here to there, and says what came out: uint8 [k, width]."""


def shared(work: Work, count: int, workers: int, least: int) -> Octets:
    """Do items 0 to `count` in equal parts; no process has fewer than `least` of them."""
    workers = max(1, min(workers, count // max(1, least)))
    return forked(work, [count * at // workers for at in range(workers + 1)])


def forked(work: Work, cuts: Sequence[int]) -> Octets:
    """Do the parts between these cuts, the first here and each other one in a process of its own.

    A part whose process ends without a result is done here, and raises what it raises.
    """
    children = []
    if hasattr(os, "fork"):
        children = [_start(work, a, b) for a, b in pairwise(cuts[1:])]
    else:
        cuts = [cuts[0], cuts[-1]]
    try:
        parts = [work(cuts[0], cuts[1])]
    finally:
        found = [_end(pid, pipe) for pid, pipe in children]
    width = parts[0].shape[1]
    for blob, (a, b) in zip(found, pairwise(cuts[1:]), strict=True):
        parts.append(work(a, b) if blob is None else np.frombuffer(blob, np.uint8).reshape(-1, width))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _start(work: Work, a: int, b: int) -> tuple[int, int]:
    pipe, end = os.pipe()
    with warnings.catch_warnings():
        # Other threads may be there; what runs here needs none of their locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        os.close(end)
        return pid, pipe
    code = 1
    try:
        gc.disable()
        os.close(pipe)
        with os.fdopen(end, "wb") as out:
            out.write(work(a, b).tobytes())
        code = 0
    finally:
        os._exit(code)


def _end(pid: int, pipe: int) -> bytes | None:
    with os.fdopen(pipe, "rb") as stream:
        blob = stream.read()
    return blob if os.waitpid(pid, 0)[1] == 0 else None
