"""A node's worker process, from the node's side: started when it is needed, ended when it hangs or is not wanted."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from typing import BinaryIO

from atoll.errors import RunError
from atoll.network.worker import Begin, Declined, Do, Done, Failed, Frame, Ready, receive, send

__all__ = ["Broken", "Hand"]


class Broken(RunError):
    """The worker process has ended, or was ended; `kind` says how."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Hand:
    """One worker process at a time.

    Args:
        begin: what it is told first.
        limit: seconds that a task may take; None: any.
    """

    def __init__(self, begin: Begin, limit: float | None = None) -> None:
        self.begin, self.limit = begin, limit
        self._process: subprocess.Popen[bytes] | None = None
        self._to: BinaryIO | None = None
        self._from: BinaryIO | None = None

    async def ready(self) -> Ready:
        """Start it, and what it says of the data.  Raises RunError where these cannot be read."""
        theirs, ours = os.pipe()
        mine, yours = os.pipe()
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.begin.threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "atoll.network.worker", str(theirs), str(yours), str(os.getpid())],
            pass_fds=(theirs, yours), stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), env=environment,
        )  # fmt: skip
        os.close(theirs)
        os.close(yours)
        self._to, self._from = os.fdopen(ours, "wb"), os.fdopen(mine, "rb")
        found = await self._told(self.begin)
        if isinstance(found, Failed):
            self.end()
            raise RunError(found.message, hint=found.hint)
        assert isinstance(found, Ready)
        return found

    async def do(self, do: Do) -> Done | Declined | Failed:
        """Have a task done.  Raises Broken where the process ended, or took too long."""
        if self._process is None:
            await self.ready()
        try:
            async with asyncio.timeout(self.limit):
                found = await self._told(do)
        except TimeoutError:
            self.end()
            raise Broken("hung", f"it took longer than {self.limit:g} s") from None
        assert isinstance(found, Done | Declined | Failed)
        return found

    async def _told(self, frame: Frame) -> Frame:
        assert self._to is not None and self._from is not None
        source, sink = self._from, self._to
        try:
            send(sink, frame)
            found = await asyncio.to_thread(receive, source)
        except (OSError, ValueError):
            found = None
        if found is None:
            process = self._process
            code = None if process is None else process.wait()
            self.end()
            what = f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"
            kind = "memory" if code == -9 else "exited"
            raise Broken(kind, f"the worker process ended {what}")
        return found

    def end(self) -> None:
        """End the process, whatever it is doing."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.kill()
            process.wait()
        for stream in (self._to, self._from):
            if stream is not None:
                with suppress(OSError, ValueError):
                    stream.close()
        self._to = self._from = None
