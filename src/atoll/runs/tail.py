"""Logs that grow: lines as they are appended, and what the end of a log says, without reading all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from atoll.measures import Figures
from atoll.runs.folder import RunFolder

__all__ = ["Glance", "Glances", "lines", "on_a_line"]

_CHUNK = 1 << 22  # bytes read at once
_LOOK = (1 << 16, 1 << 20, 1 << 23)  # bytes from the end of a log, until enough is known


class _Line(msgspec.Struct):
    """What a line must have to be an event."""

    event: str


def lines(path: Path, start: int = 0) -> Iterator[tuple[bytes, int]]:
    """Complete, sound lines from byte `start` on, as (line, byte after it); damaged ones are passed over."""
    with open(path, "rb") as file:
        file.seek(start)
        rest = b""
        while chunk := file.read(_CHUNK):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                start += len(line) + 1
                try:
                    msgspec.json.decode(line, type=_Line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
                yield line, start


def on_a_line(path: Path, place: int) -> bool:
    """Whether a line starts, or will start, at this byte."""
    if place == 0:
        return True
    with open(path, "rb") as file:
        file.seek(place - 1)
        return file.read(1) == b"\n"


# --- the end of a log ---------------------------------------------------------------------------------------


class _Evaluation(msgspec.Struct):
    overall: dict[str, float | None] = {}
    clients: dict[str, dict[str, float | None]] = {}
    personal: dict[str, dict[str, float | None]] = {}


class _Event(msgspec.Struct):
    event: str
    time: float = 0.0
    kind: str = ""
    round: int | None = None
    rounds: int | None = None
    evaluation: _Evaluation | None = None
    method: str = ""
    data: str = ""
    partition: Any = None
    measure: str = "accuracy"


@dataclass
class Glance:
    """A run in a line: how far it is, and the last value of the figure to look at first (None where unknown)."""

    name: str
    start: _Event
    round: int = 0
    rounds: int = 0
    value: float | None = None
    ending: dict[str, str] | None = None

    def to_dict(self, status: str) -> dict[str, Any]:
        about = {key: getattr(self.start, key) for key in ("time", "method", "data", "partition", "measure")}
        here = {
            "name": self.name,
            "round": self.round,
            "rounds": max(self.round, self.rounds),
            "value": self.value,
        }
        return {**about, **here, "status": status}


class Glances:
    """Looks at runs, and again only where they have changed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int, int], Glance]] = {}

    def look(self, name: str, folder: RunFolder) -> dict[str, Any]:
        """A run as plain values.  Raises OSError where it cannot be read."""
        file = folder.events_file
        about = file.stat()
        version = (about.st_ino, about.st_size, about.st_mtime_ns)
        known = self._known.get(file)
        if known is None or known[0] != version:
            known = self._known[file] = (version, _glance(name, file))
        return known[1].to_dict(status(folder, known[1].ending))


def status(folder: RunFolder, ending: dict[str, str] | None) -> str:
    """The state of a run with this ending: "finished", "running", "stopped", "failed" or "cut off"."""
    if ending is not None and ending["event"] == "result":
        return "finished"  # without a look at the lock, which would take it for a moment
    return folder.status(ending)


def _glance(name: str, file: Path) -> Glance:
    start = next((event for event in _first(file) if event.event == "start"), _Event("start"))
    found = Glance(name, start, rounds=start.rounds or 0)
    for size in _LOOK:
        whole = _backwards(found, file, size)
        if whole or (found.round and found.value is not None):
            break
    return found


def _first(file: Path) -> Iterator[_Event]:
    with open(file, "rb") as handle:
        for line in handle.readlines(_LOOK[0]):
            if (event := _decode(line)) is not None:
                yield event
                return


def _backwards(found: Glance, file: Path, size: int) -> bool:
    """Fill in what the last `size` bytes say; whether they were the whole file."""
    with open(file, "rb") as handle:
        length = handle.seek(0, 2)
        handle.seek(max(0, length - size))
        tail = handle.read().split(b"\n")
    tail = tail[:-1] if length <= size else tail[1:-1]  # pieces of lines go
    found.round, found.value, found.ending = 0, None, None
    limit, last = None, True
    for line in reversed(tail):
        event = _decode(line)
        if event is None or event.event == "problem":  # a reader may fail after the end
            continue
        if last and event.event in ("result", "error"):
            found.ending = {"event": event.event, "kind": event.kind}
        last = False
        number = event.round or 0
        if event.event == "resume":
            if limit is None:
                found.rounds = event.rounds or found.rounds
            limit = number if limit is None else min(limit, number)
        if event.event not in ("round", "resume") or (limit is not None and number > limit):
            continue
        found.round = max(found.round, number)
        if event.evaluation is not None and found.value is None:
            found.value = _value(event.evaluation, found.start.measure)
        if found.value is not None:
            break
    return length <= size


def _value(evaluation: _Evaluation, measure: str) -> float | None:
    figures = Figures(msgspec.structs.asdict(evaluation), measure)
    return figures.value(figures.first)


def _decode(line: bytes) -> _Event | None:
    try:
        return msgspec.json.decode(line, type=_Event)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
