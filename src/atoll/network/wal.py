"""Whether SQLite, when it opened a database, could use all of the write-ahead log that was there.

It uses the log up to the last commit before the first frame whose checksum is wrong, and says nothing of the rest.
Layout of the file: https://www.sqlite.org/fileformat2.html, section 4.
"""

from __future__ import annotations

import struct
from pathlib import Path

__all__ = ["Tail"]

_HEADER, _FRAME = 32, 24
_MAGIC = 0x377F0682  # the lowest bit says in which order of bytes sums are taken


class Tail:
    """What a log says of itself, read before SQLite opens it."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(f"{database.name}-wal")
        self.commits = 0
        """How many frames there are up to the last that ends a commit; -1 where the log's head is damaged."""
        try:
            with self.path.open("rb") as log:
                head = log.read(_HEADER)
                if len(head) < _HEADER:
                    return
                magic, _, page, _, *salt = struct.unpack(">6I", head[:24])
                if magic & ~1 != _MAGIC or _sum(head[:24], "<>"[magic & 1]) != struct.unpack(
                    ">2I", head[24:]
                ):
                    self.commits = -1
                    return
                place = 0
                while len(frame := log.read(_FRAME)) == _FRAME and len(log.read(page)) == page:
                    place += 1
                    _, commit, *found = struct.unpack(">4I", frame[:16])
                    if commit and found == salt:  # other salts: left over from before the log began anew
                        self.commits = place
        except FileNotFoundError:
            return

    def lost(self, used: int) -> bool:
        """Whether commits are gone that the log holds, where SQLite used so many frames."""
        return self.commits < 0 or self.commits > used


def _sum(data: bytes, order: str) -> tuple[int, int]:
    one = two = 0
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for x, y in zip(words[::2], words[1::2], strict=True):
        one = (one + x + two) & 0xFFFFFFFF
        two = (two + y + one) & 0xFFFFFFFF
    return one, two
