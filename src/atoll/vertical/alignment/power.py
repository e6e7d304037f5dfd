"""Who does the multiplications: this process, piece by piece so that others get their turn, or several."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from atoll.he.forked import shared
from atoll.vertical.alignment.curve import BYTES
from atoll.vertical.alignment.group import Group, group

__all__ = ["Points", "Power"]

Points = NDArray[np.uint8]  # [n, 32]

_PIECE = 2048  # some 60 ms
_LONG = 8  # pieces that several processes are worth starting for


@dataclass(frozen=True)
class Power:
    """Blinds and raises.

    Attributes:
        workers: processes that share the work, where the system can fork; 1 for this one alone.
        group: in which one.
    """

    workers: int = 1
    group: Group = field(default_factory=lambda: group("x25519"))

    async def raised(self, points: Points, key: bytes) -> Points:
        """Points times a secret.  Raises ValueError where one has low order."""
        flat = points.tobytes()
        return await self._pieces(len(points), lambda a, b: self.group.raised(flat[32 * a : 32 * b], key))

    async def blinded(self, names: list[bytes], salt: bytes, key: bytes) -> Points:
        """Names as points, times a secret."""
        return await self._pieces(len(names), lambda a, b: self.group.blinded(names[a:b], salt, key))

    async def _pieces(self, count: int, work: Callable[[int, int], bytes]) -> Points:
        found = np.empty((count, BYTES), np.uint8)
        size = _PIECE if self.workers == 1 else _PIECE * _LONG * self.workers
        for low in range(0, count, size):
            high = min(low + size, count)

            def piece(a: int, b: int, low: int = low) -> Points:
                return np.frombuffer(work(low + a, low + b), np.uint8).reshape(-1, BYTES)

            found[low:high] = shared(piece, high - low, self.workers, _PIECE)
            await asyncio.sleep(0)
        return found
