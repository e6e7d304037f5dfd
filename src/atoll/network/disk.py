"""A file that belongs to one process, and what is said where there is no room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from atoll.errors import RunError

try:
    import fcntl
except ImportError:  # pragma: no cover - not on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["Hold", "full", "trouble"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def full(error: OSError) -> bool:
    """Whether there was no room: what failed may be tried again once there is."""
    return error.errno in _FULL


def trouble(path: Path, error: OSError) -> RunError:
    """The error for a file that cannot be written."""
    hint = "make room on the disk" if full(error) else "look after the disk, and who may write there"
    return RunError(f"{path}: {(error.strerror or str(error)).lower()}", hint=hint)


class Hold:
    """A file beside another that says which process has it; let go when that process ends, however it ends.

    Raises RunError where another process has it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        lock = path.with_name(f"{path.name}.lock")
        try:
            self._file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise trouble(lock, error) from error
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, str(os.getpid()).encode(), 0)
        except OSError as error:
            owner = _owner(self._file)
            os.close(self._file)
            if full(error):
                raise trouble(lock, error) from error
            raise RunError(
                f"{owner} has {path}", hint="stop it, or give this one a directory of its own"
            ) from None

    def release(self) -> None:
        """Let others have it."""
        os.close(self._file)


def _owner(lock: int) -> str:
    pid = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
    if not pid.isdigit():
        return "another process"
    return "this process itself" if int(pid) == os.getpid() else f"another process (pid {pid})"
