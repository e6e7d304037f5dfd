"""Bodies on the disk, by the hash of their bytes: orders that go out, answers that have come."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Blobs"]


class Blobs:
    """A directory of files that are named after the SHA-256 of what is in them.

    A file with its name is whole: bytes are written and synced beside it first. What has begun to arrive has the name
    of its sender and task, ending in ".part".
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        return self.place / sha256

    def part(self, name: str) -> Path:
        """Where a body is gathered that is still arriving."""
        return self.place / f"{name}.part"

    def put(self, blob: bytes) -> str:
        """Keep these bytes; their hash."""
        sha256 = hashlib.sha256(blob).hexdigest()
        if not self.path(sha256).is_file():
            part = self.part(f"own-{sha256}")
            with part.open("wb") as stream:
                stream.write(blob)
                stream.flush()
                os.fsync(stream.fileno())
            self.keep(part, sha256)
        return sha256

    def keep(self, part: Path, sha256: str) -> None:
        """Give a whole body, already synced, its name."""
        part.replace(self.path(sha256))
        directory = os.open(self.place, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def whole(self, sha256: str) -> bool:
        """Whether a body is there, and its bytes are those that it is named after."""
        try:
            with self.path(sha256).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
        except OSError:
            return False

    def only(self, wanted: Iterable[str]) -> None:
        """Remove all whole bodies but these."""
        stay = set(wanted)
        for path in self.place.iterdir():
            if path.suffix != ".part" and path.name not in stay:
                path.unlink(missing_ok=True)
