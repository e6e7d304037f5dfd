"""A worker that stays between messages: Flower starts a process for each, and torch and the data are read once.

It is `atoll.network.worker`'s, on a socket in a directory that is this user's alone. It ends with the SuperNode that it
works for, or once nobody has asked for anything for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from atoll.errors import RunError
from atoll.network.hand import Hand
from atoll.network.worker import Begin, Declined, Do, Done, Failed, Ready, serve

__all__ = ["Staying"]

_IDLE = 600.0
"""Seconds without a message after which it ends."""

_START = 120.0
"""Seconds that it may take until it listens."""

_SAME, _OTHER = b"1", b"0"


class Staying(Hand):
    """The hand whose worker may be there already.

    Args:
        paths: where modules of the app are looked for; a worker that has read others makes room.
    """

    def __init__(self, begin: Begin, paths: Sequence[str]) -> None:
        super().__init__(begin)
        self._paths = os.pathsep.join(paths)
        self._key = hashlib.sha256(msgspec.msgpack.encode(begin) + self._paths.encode()).digest()

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
                if line.recv(1) == _SAME:
                    return line.makefile("wb"), line.makefile("rb")
            except OSError:
                pass
            finally:
                line.close()  # the streams keep it open
            if started is None or started.poll() is not None:
                started = self._started(path)
            time.sleep(0.05)
        raise RunError("the worker does not start", hint=f"its log is {self.begin.place}/worker.log")

    def _started(self, path: Path) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(self.begin.threads), "PYTHONPATH": self._paths,
        }  # fmt: skip
        with (Path(self.begin.place) / "worker.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "atoll.flower.staying", str(path), str(os.getppid())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip


def _address(place: str) -> Path:
    """The socket of a node's worker, by the node's directory.  Raises RunError where others could reach it."""
    home = Path(tempfile.gettempdir()) / f"atoll-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700)
    found = home.lstat()
    if not home.is_dir() or home.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise RunError(f"{home} is not this user's alone", hint=f"remove it, or set TMPDIR: chmod 700 {home}")
    return home / f"{hashlib.sha256(str(Path(place).resolve()).encode()).hexdigest()[:24]}.sock"


# --- the process ----------------------------------------------------------------------------------------------------


def main(path: str, parent: int) -> None:
    """Serve one visitor after the other."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    known, work, last = None, None, time.monotonic()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen(4)
        door.settimeout(0.5)
        while _there(parent) and time.monotonic() - last < _IDLE:
            try:
                line, _ = door.accept()
            except TimeoutError:
                continue
            line.settimeout(None)
            with line, line.makefile("rb") as source, line.makefile("wb") as sink:
                key = source.read(32)
                if known not in (None, key):
                    os.unlink(path)
                    line.sendall(_OTHER)
                    return
                known = key
                line.sendall(_SAME)
                with contextlib.suppress(OSError):
                    work = serve(source, sink, work)
            last = time.monotonic()
        os.unlink(path)


def _there(parent: int) -> bool:
    try:
        os.kill(parent, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
