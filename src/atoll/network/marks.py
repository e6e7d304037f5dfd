"""What a node has done once and must not do again, on its disk before anybody hears of it."""

from __future__ import annotations

import os
from pathlib import Path

from atoll.durable import sync
from atoll.errors import RunError

__all__ = ["MarksOnDisk"]


class MarksOnDisk:
    """Marks of secure aggregation (`atoll.channel.secagg.Marks`) that survive the process and the machine.

    A file to which lines are added: what, of, value. A line that the end of the machine cut short was never told to
    anybody, and counts for nothing.

    Raises RunError where a whole line is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[tuple[str, str], str] = {}
        text = path.read_bytes().decode("ascii", "replace") if path.is_file() else ""
        *lines, rest = text.split("\n")
        for line in lines:
            parts = line.split(" ")
            if len(parts) != 3:
                raise RunError(
                    f"{path} is damaged: {line[:60]!r}",
                    hint="join under another name: what this node has answered is not known any more",
                )
            self._known[parts[0], parts[1]] = parts[2]
        if rest:
            os.truncate(path, len(text) - len(rest))

    def once(self, what: str, of: bytes) -> bool:
        """Write down that this was done. False if it was written down before."""
        if (what, of.hex()) in self._known:
            return False
        return self.only(what, of, b"")

    def only(self, what: str, of: bytes, value: bytes) -> bool:
        """Write down this value. False if another one was written down before."""
        key = what, of.hex()
        if key not in self._known:
            self._added(f"{what} {of.hex()} {value.hex()}\n")
            self._known[key] = value.hex()
        return self._known[key] == value.hex()

    def _added(self, line: str) -> None:
        new = not self.path.is_file()
        with self.path.open("ab") as stream:
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())
        if new:
            sync(self.path.parent)
