"""What trials of engines have found, in a file of the user's cache, so that the next run of the same begins at once.

It is a cache and no more: a file that cannot be read, or written, is as good as none. `ATOLL_CACHE=off` does without.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Found", "forget", "key", "recall", "remember"]

_MOST = 500  # entries; the oldest go


@dataclass(frozen=True)
class Found:
    """What a round takes, in seconds, and what comes before it.

    Attributes:
        loop: as it is written.
        alone: in worker processes.
        together: batched, on so many `threads`.
        capture: seconds to capture one step.
        captures: how many of them batched needs.
    """

    loop: float
    alone: float
    together: float
    threads: int
    capture: float
    captures: int


def key(*parts: Any) -> str:
    """The name under which something is kept: of what it is, and of this machine."""
    return hashlib.sha256(repr((_processor(), *parts)).encode()).hexdigest()[:32]


def recall(name: str) -> Found | None:
    """What was found, or None."""
    try:
        entry = _entries()[name]
        found = Found(*(kind(entry[each]) for each, kind in _FIELDS.items()))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    sound = all(0 < getattr(found, each) < 1e9 for each in ("loop", "alone", "together", "threads"))
    return found if sound else None


def remember(name: str, found: Found) -> None:
    """Keep it."""
    entries = _entries()
    entries.pop(name, None)
    entries[name] = {**asdict(found), "at": round(time.time())}
    while len(entries) > _MOST:
        del entries[next(iter(entries))]
    _write(entries)


def forget(name: str) -> None:
    """Keep it no more."""
    entries = _entries()
    if entries.pop(name, None) is not None:
        _write(entries)


_FIELDS: dict[str, type] = {
    each.name: int if each.name in ("threads", "captures") else float for each in fields(Found)
}


def _file() -> Path | None:
    """Where it is; None where nothing is kept."""
    if os.environ.get("ATOLL_CACHE", "").lower() == "off":
        return None
    try:
        given = os.environ.get("XDG_CACHE_HOME")
        return (Path(given) if given else Path.home() / ".cache") / "atoll" / "engines.json"
    except RuntimeError:  # nobody's home
        return None


def _entries() -> dict[str, Any]:
    """All of it, the oldest first."""
    where = _file()
    try:
        held = json.loads(where.read_text(encoding="utf-8")) if where else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def _write(entries: dict[str, Any]) -> None:
    """In the place of what is there, whole or not at all."""
    where = _file()
    if where is None:
        return
    with suppress(OSError):
        where.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=where.parent, prefix=".engines-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(entries, file)
            os.replace(name, where)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


@cache
def _processor() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
