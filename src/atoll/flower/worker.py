"""The process of a worker that stays: one visitor after the other, on a socket, until nobody comes any more."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time

from atoll.flower.staying import OTHER, SAME
from atoll.network.worker import serve

_IDLE = 600.0
"""Seconds without a visitor after which it ends."""


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
                    line.sendall(OTHER)
                    return
                known = key
                line.sendall(SAME)
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
