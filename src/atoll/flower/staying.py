"""A worker that stays between messages: Flower starts a process for each, and torch and the data are read once.

It is `atoll.network.worker`'s, on a socket in a directory that is this user's alone (`atoll.flower.worker`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from atoll.errors import RunError
from atoll.network.hand import Hand
from atoll.network.worker import Begin, Declined, Do, Done, Failed, Ready

__all__ = ["OTHER", "SAME", "Staying"]

SAME, OTHER = b"1", b"0"
"""What a worker says to who calls: it has begun what they ask for; it had begun something else, and ends."""

_START = 120.0
"""Seconds that it may take until it listens."""


class Staying(Hand):
    """The hand whose worker may be there already: one that has begun the same, with data and a policy as they are now.

    Args:
        paths: where modules of the app are looked for; a worker that has read others makes room.
    """

    def __init__(self, begin: Begin, paths: Sequence[str]) -> None:
        super().__init__(begin)
        self._paths = os.pathsep.join(paths)
        said = msgspec.msgpack.encode((begin, self._paths, _state(begin.source), _state(begin.policy)))
        self._key = hashlib.sha256(said).digest()

    async def ready(self) -> Ready:
        self._to, self._from = await asyncio.to_thread(self._met)
        found = await self._told(self.begin)
        if isinstance(found, Failed):
            raise RunError(found.message, hint=found.hint)
        assert isinstance(found, Ready)
        return found

    async def do(self, do: Do) -> Done | Declined | Failed:
        found = await self._told(do)
        assert isinstance(found, Done | Declined | Failed)
        return found

    def _met(self) -> tuple[BinaryIO, BinaryIO]:
        """Streams to the worker, which is started where it is not there."""
        path, started = _address(self.begin.place), None
        end = time.monotonic() + _START
        while time.monotonic() < end:
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(str(path))
                line.sendall(self._key)
                if line.recv(1) == SAME:
                    return line.makefile("wb"), line.makefile("rb")
            except OSError:
                pass
            finally:
                line.close()  # the streams keep it open
            if started is None or os.waitpid(started, os.WNOHANG)[0]:
                started = self._started(path)
            time.sleep(0.05)
        raise RunError("the worker does not start", hint=f"its log is {self.begin.place}/worker.log")

    def _started(self, path: Path) -> int:
        """The number of a new worker, which this process, one of many, does not wait for."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.begin.threads), "PYTHONPATH": self._paths}
        command = [sys.executable, "-m", "atoll.flower.worker", str(path), str(os.getppid())]
        log = os.open(Path(self.begin.place) / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        streams = [(os.POSIX_SPAWN_DUP2, null, 0), *((os.POSIX_SPAWN_DUP2, log, to) for to in (1, 2))]
        try:
            return os.posix_spawn(command[0], command, environment, file_actions=streams, setsid=True)
        finally:
            os.close(log)
            os.close(null)


def _state(path: str | None) -> list[tuple[str, int, int]]:
    """What would be another where a file, or one in a folder, was written since: it is then read anew."""
    if path is None:
        return []
    files = sorted(each for each in [Path(path), *Path(path).rglob("*")] if each.is_file())
    return [(str(each), (of := each.stat()).st_mtime_ns, of.st_size) for each in files]


def _address(place: str) -> Path:
    """The socket of a node's worker, by the node's directory.  Raises RunError where others could reach it."""
    home = Path(tempfile.gettempdir()) / f"atoll-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700)
    found = home.lstat()
    if not home.is_dir() or home.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise RunError(f"{home} is not this user's alone", hint=f"remove it, or set TMPDIR: chmod 700 {home}")
    return home / f"{hashlib.sha256(str(Path(place).resolve()).encode()).hexdigest()[:24]}.sock"
