"""What must last on a disk, and belong to one process."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from typing import Any

from atoll.errors import RunError

try:
    import fcntl
except ImportError:  # pragma: no cover - not on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["Hold", "beside", "full", "sync", "trouble"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def sync(directory: Path) -> None:
    """Make what was created, renamed or removed in a directory last through a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def beside(path: Path, *content: Any, durable: bool = True) -> Path:
    """Write what `path` is to hold into a file of its own in the same directory, which a rename then puts in place.

    Nothing stays behind where it fails. Raises OSError.
    """
    part = path.with_name(f"own-{path.name}-{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as stream:
            for piece in content:
                stream.write(piece)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


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
