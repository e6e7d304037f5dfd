"""A run as JSON lines on stdout: the same lines as its events.jsonl (`docs/runs.md`)."""

from __future__ import annotations

import sys

from atoll.runs.events import Event, encode
from atoll.runs.readers import Reader

__all__ = ["JsonLines"]


class JsonLines(Reader):
    """Prints every event."""

    def event(self, event: Event) -> None:
        sys.stdout.write(encode(event).decode())
        sys.stdout.flush()
