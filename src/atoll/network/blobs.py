"""Bodies on the disk, by the hash of their bytes: orders that go out, answers that have come."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atoll.durable import beside, sync
from atoll.errors import DataError
from atoll.network.disk import trouble

__all__ = ["Blobs", "mapped"]

_NAME = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_STALE = 24 * 3600.0  # seconds after which nobody goes on with what has begun to arrive


class Blobs:
    """A directory of files that are named after the SHA-256 of what is in them.

    A file with its name is whole: bytes are written and synced beside it first. What has begun to arrive has the name
    of its sender and task, ending in ".part", and is still there after a restart. Any thread may call.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._durable: dict[str, bool] = {}  # bodies that this process has put or looked at: are they synced
        try:
            if not place.is_dir():
                place.mkdir(parents=True, exist_ok=True)
                sync(place.parent)
        except OSError as error:
            raise trouble(place, error) from error

    def path(self, sha256: str) -> Path:
        """Where a body is, or would be.  Raises DataError for what is no hash: it may have come from outside."""
        if not _NAME.fullmatch(sha256):
            raise DataError(f"{sha256!r} is no SHA-256", hint="64 digits, 0-9 and a-f")
        return self.place / sha256

    def part(self, name: str) -> Path:
        """Where a body is gathered that is still arriving.  Raises DataError for a name that is a path."""
        if not _PART.fullmatch(name):
            raise DataError(f"{name!r} is no name of a part", hint="letters, digits, -, _ and .")
        return self.place / f"{name}.part"

    def put(self, *blob: Any, durable: bool = True) -> str:
        """Keep these bytes, given whole or in pieces; their hash.

        They outlast a power cut when this returns, unless they can be made again.

        Raises RunError where they cannot be written.
        """
        total = hashlib.sha256()
        for piece in blob:
            total.update(piece)
        sha256 = total.hexdigest()
        path = self.path(sha256)
        try:
            if not self._there(sha256, durable):
                beside(path, *blob, durable=durable).replace(path)
                if durable:
                    sync(self.place)
                self._durable[sha256] = durable
        except OSError as error:
            raise trouble(path, error) from error
        return sha256

    def _there(self, sha256: str, durable: bool) -> bool:
        """Whether a body is there and, if it has to be, synced. What another process wrote is not believed blindly."""
        path = self.path(sha256)
        if not path.is_file() or not (sha256 in self._durable or self.whole(sha256)):
            return False
        if durable and not self._durable.get(sha256):
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            sync(self.place)
        self._durable[sha256] = durable or self._durable.get(sha256, False)
        return True

    def keep(self, part: Path, sha256: str) -> None:
        """Give a whole body, already synced, its name.  Raises RunError where that fails."""
        path = self.path(sha256)
        try:
            part.replace(path)
            sync(self.place)
        except OSError as error:
            raise trouble(path, error) from error

    def whole(self, sha256: str) -> bool:
        """Whether a body is there, and its bytes are those that it is named after."""
        try:
            with self.path(sha256).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
        except OSError:
            return False

    def mapped(self, sha256: str) -> Any:
        """A body's bytes in memory that its file stands behind; what is written there is nobody else's."""
        return mapped(self.path(sha256))

    def only(self, wanted: Iterable[str]) -> None:
        """Remove all whole bodies but these, and what began to arrive more than a day ago."""
        stay, old = set(wanted), time.time() - _STALE
        for path in self.place.iterdir():
            if path.suffix == ".part":
                if _changed(path) < old:
                    path.unlink(missing_ok=True)
            elif path.name not in stay:
                self._durable.pop(path.name, None)
                path.unlink(missing_ok=True)


def mapped(path: Path) -> Any:
    """A file's bytes, mapped: they are read when they are looked at, and take no memory that cannot be had back."""
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # it became a body meanwhile
        return float("inf")
