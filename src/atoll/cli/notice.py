"""What is being done before there is anything to show: one line on the terminal, written over and taken away."""

from __future__ import annotations

import logging
import sys

__all__ = ["Notice"]


class Notice:
    """Says in one line of a terminal what takes a moment; without a terminal, or where `quiet`, nothing.

    Needs neither torch nor rich: their imports are what it tells of first.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._stream = sys.stderr
        self._silent = quiet or not self._stream.isatty()
        self._shown = False
        if not self._silent:
            for handler in logging.getLogger().handlers:
                handler.addFilter(self._aside)

    def say(self, text: str) -> None:
        """This is done now, instead of what was said before."""
        self._write(f"\r\x1b[2K{text} ...")
        self._shown = True

    def clear(self) -> None:
        """Take the line away."""
        self._write("\r\x1b[2K")
        self._shown = False

    def _aside(self, record: logging.LogRecord) -> bool:
        """A warning gets a line of its own."""
        if self._shown:
            self.clear()
        return True

    def _write(self, text: str) -> None:
        if not self._silent:
            self._stream.write(text)
            self._stream.flush()
