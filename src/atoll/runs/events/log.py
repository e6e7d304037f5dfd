"""The event log: one JSON object a line, only ever appended to. `docs/runs.md` lists the events and their fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from atoll.runs.events.kinds import Written

__all__ = ["Event", "Log", "encode", "follow", "plain", "read", "sound"]

Event = dict[str, Any]
"""An event as it is read: lenient, for it may be of a later version, or of none."""


def plain(event: Written) -> Event:
    """An event in the form in which it is read, but that numbers which JSON lacks stay as they are.

    Lists are shared and not copied: they may be as long as there are clients.
    """
    return {"event": event.__struct_config__.tag, **_plain(event)}


def _plain(value: Any) -> Any:
    if isinstance(value, Struct):
        fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return {name: _plain(each) for name, each in fields if each is not UNSET}
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def encode(event: Written | Mapping[str, Any]) -> bytes:
    """An event as a line of JSON, newline included; numbers that JSON lacks become null."""
    return msgspec.json.encode(event) + b"\n"


@dataclass(frozen=True)
class Log:
    """The events of a file that could be read, and the numbers (from 1) of the lines that could not."""

    events: list[Event]
    damaged: list[int]


def follow(path: Path, start: int = 0) -> Iterator[tuple[Event | None, int]]:
    """Complete lines from byte `start` on, as (event, byte after the line); the event is None for a damaged line.

    A last line without its newline is still being written, or was cut off: it is left for later.
    """
    with open(path, "rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            yield _decode(line), start


def _decode(line: bytes) -> Event | None:
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("event"), str) else None


def read(path: Path) -> Log:
    """All events of a file, without the void ones."""
    events: list[Event] = []
    damaged = []
    for number, (found, _) in enumerate(follow(path), start=1):
        if found is None:
            damaged.append(number)
        else:
            events.append(found)
    return Log(sound(events), damaged)


def sound(events: Iterable[Event]) -> list[Event]:
    """The events without those that a later `resume` made void: rounds after the one it starts from, and endings."""
    kept: list[Event] = []
    for each in events:
        if each["event"] == "resume":
            after = each.get("round", 0)
            kept = [e for e in kept if e.get("round", 0) <= after and e["event"] not in ("result", "error")]
        kept.append(each)
    return kept
