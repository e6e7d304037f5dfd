"""Files that must survive and that others must not read: written beside, synced, then given their name."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from atoll.durable import beside, sync
from atoll.errors import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["keep", "locked", "private"]

_THREADS = threading.Lock()


def keep(path: Path, content: bytes, *, secret: bool = False) -> None:
    """Replace a file as a whole; it is on the disk when this returns. A secret one is its owner's alone (0600).

    Who looks at the time of the file sees that it is another.
    """
    part = beside(path, content, secret=secret)
    try:
        with contextlib.suppress(FileNotFoundError):
            last = path.stat().st_mtime_ns
            os.utime(part, ns=(time.time_ns(), max(time.time_ns(), last + 1)))
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def private(path: Path) -> bytes:
    """What is in a secret file.  Raises ConfigError where others may read it, OSError where it is not there."""
    with path.open("rb") as stream:
        if os.name != "nt" and stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o077:
            raise ConfigError(
                f"{path} holds a private key, and others than its owner may read or change it",
                hint=f"chmod 600 {path}; if somebody may have read it, make a new one",
            )
        return stream.read()


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Alone in a directory, among all threads and processes that ask."""
    with _THREADS:
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
