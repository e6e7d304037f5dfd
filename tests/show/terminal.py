"""A terminal that understands what rich sends: lines, cursor up, erased lines."""

from __future__ import annotations

import io
import re

__all__ = ["Terminal"]

_CONTROL = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


class Terminal(io.StringIO):
    """Takes what is written, and has what would be on the screen. A full line wraps with the next letter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.lines = [""]
        self.x = self.y = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        place = 0
        while place < len(text):
            control = _CONTROL.match(text, place)
            if control:
                if control[2] == "A":
                    self.y -= int(control[1] or 1)
                elif control[2] == "K":
                    self.lines[self.y] = ""
                place = control.end()
                continue
            self._put(text[place])
            place += 1
        return len(text)

    def _put(self, letter: str) -> None:
        if letter == "\r":
            self.x = 0
        elif letter == "\n":
            self.x = 0
            self._down()
        else:
            if self.x >= self.width:
                self.x = 0
                self._down()
            line = self.lines[self.y].ljust(self.x)
            self.lines[self.y] = line[: self.x] + letter + line[self.x + 1 :]
            self.x += 1

    def _down(self) -> None:
        self.y += 1
        while len(self.lines) <= self.y:
            self.lines.append("")

    def screen(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).strip()
