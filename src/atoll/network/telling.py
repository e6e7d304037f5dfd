"""What `atoll serve` and `atoll join` say: sentences for people, or a JSON object a line for programs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

__all__ = ["LARGE", "Said", "Teller", "Transfer", "said"]

LARGE = 8 << 20
"""Bytes of a body above which people are told how far it is."""

_PACE = 2.0  # seconds between lines about a transfer


class Said(str):
    """A sentence that knows what it tells of: a word for programs, and facts."""

    __slots__ = ("event", "facts")
    event: str
    facts: dict[str, Any]


def said(event: str, sentence: str, **facts: Any) -> Said:
    """A sentence with its event and facts."""
    found = Said(sentence)
    found.event, found.facts = event, facts
    return found


class Teller:
    """Prints what is said. Any thread may call.

    Args:
        json: as JSON, `{"time": ..., "event": ..., "facts": {...}}` a line; else as sentences, progress in a terminal
            on one line.
    """

    def __init__(self, json: bool = False, stream: TextIO | None = None) -> None:
        self.json, self.stream = json, stream or sys.stdout
        self._lock, self._open = threading.Lock(), False

    def __call__(self, text: str) -> None:
        """Say a sentence."""
        event, facts = (text.event, text.facts) if isinstance(text, Said) else ("said", {})
        if self.json:
            self.event(event, {**facts, "text": str(text)})
            return
        with self._lock:
            live = event == "transfer" and self.stream.isatty()
            begin = "\r\x1b[K" if self._open else ""
            self._open = live and not facts.get("done")
            self.stream.write(begin + text + ("" if self._open else "\n"))
            self.stream.flush()

    def event(self, event: str, facts: dict[str, Any]) -> None:
        """Say an event for which there is no sentence: nothing to people."""
        if not self.json:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = msgspec.json.encode({"time": now, "event": event, "facts": facts}).decode()
        with self._lock:
            self.stream.write(line + "\n")
            self.stream.flush()


class Transfer:
    """Tells how far a large body is, every two seconds, and when it is through; nothing of others."""

    def __init__(self, tell: Callable[[str], object], way: str, size: int, there: int = 0) -> None:
        self.tell, self.way, self.size = tell, way, size
        self._first, self._begun, self._last = there, time.monotonic(), time.monotonic()

    def at(self, there: int) -> None:
        """So many bytes are through."""
        now = time.monotonic()
        done = there >= self.size
        if self.size < LARGE or (now - self._last < _PACE and not done):
            return
        self._last = now
        rate = (there - self._first) / max(now - self._begun, 1e-3)
        share = 100 * there // max(self.size, 1)
        text = f"{self.way} {there / 1e6:.0f} of {self.size / 1e6:.0f} MB, {share} %, {rate / 1e6:.1f} MB/s"
        facts = {"way": self.way, "bytes": there, "size": self.size, "rate": round(rate), "done": done}
        self.tell(said("transfer", text, **facts))
