"""Links that a user wrote down: a CSV file, a line each, peers by number or by name.

from,to           a link, both ways with `file:PATH`, from one to the other with `arrows:PATH`
from,to,weight    what the model of `from` counts for at `to`; a line from a peer to itself says what its own
                  counts for, which otherwise is the rest to 1
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from atoll.errors import ConfigError
from atoll.topology.weights import Weights

__all__ = ["Link", "read_file", "weighted"]


class Link(NamedTuple):
    """That `to` hears `source`, and what this counts for; None: that follows from the links."""

    source: int
    to: int
    weight: float | None = None


def read_file(path: Path, peers: int, names: Sequence[object] = ()) -> tuple[Link, ...]:
    """The links in a file.  Raises ConfigError, naming file and line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"topology: {path} cannot be read ({error})", hint="a CSV file, such as from,to"
        ) from None
    header = [cell.strip().lower() for cell in lines[0]] if lines else []
    if header not in (["from", "to"], ["from", "to", "weight"]):
        raise ConfigError(
            f"topology: {path} begins with {','.join(header) or 'nothing'!r}",
            hint="its first line is from,to or from,to,weight",
        )
    known = {str(name): at for at, name in enumerate(names)}
    found, seen = [], set()
    for number, line in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in line):
            continue
        place = f"topology: {path}, line {number}"
        if len(line) != len(header):
            raise ConfigError(
                f"{place} has {len(line)} cells, and the first line has {len(header)}",
                hint=f"write {','.join(header)}",
            )
        source, to = (_peer(cell.strip(), peers, known, place) for cell in line[:2])
        weight = _weight(line[2].strip(), place) if len(header) == 3 else None
        if (source, to) in seen:
            raise ConfigError(f"{place} says again what peer {source} is to peer {to}", hint="leave it out")
        seen.add((source, to))
        found.append(Link(source, to, weight))
    if not found:
        raise ConfigError(f"topology: {path} has no links", hint="a line each: 0,1")
    return tuple(found)


def _peer(text: str, peers: int, known: dict[str, int], place: str) -> int:
    if text in known:
        return known[text]
    if text.isdecimal() and int(text) < peers:
        return int(text)
    few = ", ".join(list(known)[:5])
    raise ConfigError(
        f"{place}: there is no peer {text!r}",
        hint=f"peers are 0 to {peers - 1}" + (f", or go by name: {few} ..." if known else ""),
    )


def _weight(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"{place}: the weight {text!r} is no share", hint="a number from 0 to 1")
    return value


def weighted(links: Sequence[Link], peers: int) -> Weights:
    """The weights that a file gives; what a peer's own model counts for is the rest, where it is not said."""
    rows: list[dict[int, float]] = [{} for _ in range(peers)]
    for link in links:
        assert link.weight is not None
        rows[link.to][link.source] = link.weight
    for at, row in enumerate(rows):
        if at not in row:
            row[at] = max(0.0, 1 - sum(row.values()))
    return Weights.of((list(row), list(row.values())) for row in rows)
