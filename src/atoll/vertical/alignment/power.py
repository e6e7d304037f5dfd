"""Who does the multiplications: this process, piece by piece so that others get their turn, or several."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.errors import RunError
from atoll.vertical.alignment import curve

__all__ = ["Points", "Power"]

Points = NDArray[np.uint8]  # [n, 32]

_PIECE = 2048  # some 60 ms


class Power:
    """Blinds and raises.

    Args:
        workers: processes besides this one, forked where that is safe and else started afresh; 1 for none.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        way = "fork" if sys.platform == "linux" else "spawn"
        self._pool = ProcessPoolExecutor(workers, get_context(way)) if workers > 1 else None

    def __enter__(self) -> Power:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    async def raised(self, points: Points, key: bytes) -> Points:
        """Points times a secret.  Raises ValueError where one has low order."""
        flat = points.tobytes()
        return await self._pieces(
            len(points), curve.raised, lambda low, high: (flat[32 * low : 32 * high], key)
        )

    async def blinded(self, names: list[bytes], salt: bytes, key: bytes) -> Points:
        """Names as points, times a secret."""
        return await self._pieces(len(names), curve.blinded, lambda low, high: (names[low:high], salt, key))

    async def _pieces(
        self, count: int, function: Callable[..., bytes], taken: Callable[[int, int], tuple[Any, ...]]
    ) -> Points:
        if self._pool is None:
            done = []
            for low in range(0, count, _PIECE):
                done.append(function(*taken(low, min(low + _PIECE, count))))
                await asyncio.sleep(0)
        else:
            size = max(_PIECE, -(-count // self.workers))
            loop = asyncio.get_running_loop()
            work = [
                loop.run_in_executor(self._pool, function, *taken(low, min(low + size, count)))
                for low in range(0, count, size)
            ]
            try:
                done = await asyncio.gather(*work)
            except BrokenProcessPool:
                raise RunError(
                    "a process that computes points has ended early",
                    hint="was there too little memory? workers = 1 needs no process",
                ) from None
        return np.frombuffer(b"".join(done), np.uint8).reshape(-1, curve.BYTES)
