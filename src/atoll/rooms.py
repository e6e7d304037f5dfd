"""Large tensors that are written over as a whole, in memory that was used before where there is some.

What a server of many parameters makes anew each round is as large as what it drops: a step of Adam on 20 million
parameters writes 240 MB, and the system clears fresh memory page by page, for longer than the step takes. What is
dropped is kept for the next one of that size, in proportion to what is in use.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoll.mapped import mapping

__all__ = ["Rooms", "blank"]

_HUGE, _ALIGNED = 1 << 23, 64

IDLE = 1.5
"""Bytes that are kept for each that is in use: parameters and two moments of each are in use, and a gradient is not."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Rooms:
    """Memory that is given out and comes back by itself, when the last tensor in it is gone."""

    def __init__(self) -> None:
        self._used: dict[int, tuple[weakref.ref[Bytes], Bytes]] = {}  # by the reference's id
        self._idle: list[Bytes] = []
        self._lock = threading.RLock()  # a tensor may go, and its room come back, while another is given out

    def give(self, nbytes: int) -> Bytes:
        """So many bytes, whatever stands in them, aligned as torch aligns: products round by where matrices begin."""
        with self._lock:
            fits = [at for at, room in enumerate(self._idle) if room.nbytes == nbytes + _ALIGNED]
            room = self._idle.pop(fits[-1]) if fits else np.empty(nbytes + _ALIGNED, np.uint8)
            start = -room.ctypes.data % _ALIGNED
            given = room[start : start + nbytes]
            seen = weakref.ref(given, self._back)
            self._used[id(seen)] = seen, room
            return given

    def _back(self, given: weakref.ref[Bytes]) -> None:
        with self._lock:
            self._idle.append(self._used.pop(id(given))[1])
            most = IDLE * sum(room.nbytes for _, room in self._used.values())
            while sum(room.nbytes for room in self._idle) > most:
                del self._idle[0]

    @property
    def idle(self) -> int:
        """Bytes that are kept and not in use."""
        return sum(room.nbytes for room in self._idle)


_ROOMS = Rooms()


def blank(like: Tensor) -> Tensor:
    """A tensor of this form with whatever stands in its memory, to be written over.

    Large ones in main memory are numpy's: it asks for huge pages, torch does not. Writing into 80 MB for the first time
    then takes 20 ms instead of 40, and again 10. Where large tensors lie in files, this one does.
    """
    if like.device.type != "cpu" or like.nbytes < _HUGE or mapping() is not None:
        return torch.empty_like(like)
    return torch.from_numpy(_ROOMS.give(like.nbytes)).view(like.dtype).view(like.shape)
