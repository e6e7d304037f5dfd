"""A file of lines that is only ever added to: each is on the disk before `append` returns, and vouches for the rest.

A line is ``{"entry":...,"sum":"..."}``, its sum a hash of the sum before and the entry: a line that was changed,
taken out or put in is noticed. That the end was taken off at a line's boundary is not, nor that an older copy was
put back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from atoll.durable import beside, sync
from atoll.errors import BudgetError

try:
    import fcntl
except ImportError:  # pragma: no cover - not on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["DAMAGED", "Appender", "entry", "read"]

DAMAGED = "restore it from a copy that is whole; what was spent cannot be told from this one"


class _Line(Struct, frozen=True, forbid_unknown_fields=True):
    entry: msgspec.Raw
    sum: str


def _sum(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()[:32]


def _line(before: str, body: bytes) -> tuple[bytes, str]:
    after = _sum(before, body)
    return msgspec.json.encode(_Line(msgspec.Raw(body), after)) + b"\n", after


def entry(line: bytes, before: str) -> tuple[bytes, str] | None:
    """The entry of a line and its sum; None where it is no whole line after `before`."""
    try:
        found = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    body = bytes(found.entry)
    return (body, found.sum) if found.sum == _sum(before, body) else None


def read(path: Path) -> tuple[list[bytes], str, bytes]:
    """The entries of all lines that have an end, the last one's sum, and what stands behind them, cut off.

    Raises BudgetError where a line that has an end is not what was written, OSError where the file cannot be read.
    """
    *whole, rest = path.read_bytes().split(b"\n")
    bodies, before = [], ""
    for number, line in enumerate(whole, 1):
        found = entry(line, before)
        if found is None:
            raise BudgetError(f"{path}, line {number} is damaged, or a line before it is gone", hint=DAMAGED)
        bodies.append(found[0])
        before = found[1]
    return bodies, before, rest


class Appender:
    """A file of lines, held for writing.

    Raises BudgetError where another process holds it, or it is damaged; OSError where it cannot be opened.
    """

    def __init__(self, path: Path, first: bytes) -> None:
        """Open `path`, made with one line of entry `first` where it was not there. What was cut off is in `rest`."""
        _make(path, first)
        self._path = path
        self._file = os.open(path, os.O_RDWR)
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise BudgetError(
                        f"another process writes {path}", hint="wait for it, or stop it"
                    ) from None
            self.bodies, self.sum, self.rest = read(path)
            self._end = path.stat().st_size - len(self.rest)
            self._cut()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, body: bytes) -> None:
        """Add a line: it is on the disk when this returns. After an OSError it is not there, or cut off."""
        line, after = _line(self.sum, body)
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
            os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                self._cut()
            raise
        self.sum = after
        self._end += len(line)

    def close(self) -> None:
        """Let others write."""
        os.close(self._file)

    def _cut(self) -> None:
        os.ftruncate(self._file, self._end)


def _make(path: Path, first: bytes) -> None:
    """A new file is whole or not there: it is written beside its place, and linked into it where none is."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = beside(path, _line("", first)[0])
    try:
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink(missing_ok=True)
    sync(path.parent)
