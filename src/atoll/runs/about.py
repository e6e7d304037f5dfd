"""Events out of plain facts that a run hands over: what is listed, what is shortened, what is added to them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import UNSET, structs

from atoll.digits import shortened
from atoll.errors import AtollError, Terminated
from atoll.runs.events import kinds
from atoll.runs.folder import RunFolder
from atoll.runs.provenance import command, commit, config_text, versions

__all__ = ["COMPARED", "affinity", "begun", "checksum", "error", "partition", "settings_file"]

COMPARED = 64
"""Clients in an affinity matrix."""

_LISTED = 10_000  # clients whose names and sizes are listed
_DIGITS = 3  # of its entries, after the point
_SHORTENED = ("emd", "js", "effective")  # columns of a report


def begun(start: kinds.Start, folder: RunFolder | None) -> kinds.Start:
    """A start with the folder's name, the versions, the command, and the commit where it is kept."""
    return structs.replace(
        start,
        run=folder.name if folder else "",
        path=str(folder.path) if folder else UNSET,
        versions=versions(),
        command=command(),
        commit=commit() if folder else None,
    )


def settings_file(start: kinds.Start, repeatable: bool) -> bytes:
    """The content of config.toml: the settings, and where the run came from.

    Args:
        repeatable: whether the settings alone repeat it; else it is marked as made in Python.
    """
    origin: dict[str, Any] = {"command": start.command, "commit": start.commit, **start.versions}
    verb = "train" if start.workers is not UNSET else "run" if start.parties is UNSET else "vertical run"
    about = origin | ({} if repeatable else {"custom": True})
    return config_text(start.run, start.config, about, verb).encode()


def partition(
    *,
    names: Sequence[object],
    sizes: Iterable[int] | None,
    weights: Iterable[float] | None,
    judged: Mapping[int, int],
    joins: Mapping[int, int],
    leaves: Mapping[int, int],
    newcomers: Sequence[int],
    attackers: Sequence[int],
    report: Mapping[str, Any],
) -> kinds.Partition:
    """Who the clients are.

    Args:
        names: of all of them, in order.
        sizes: their training samples, looked at only where clients are listed; None where they are not known.
        weights: what they count for, where it was given; looked at likewise.
        judged: whom evaluations judge, and on how many samples.
        joins: client -> the first round with it; `leaves` likewise the first without it.
        newcomers: who never takes part; listed like clients.
        attackers: who lies; listed likewise, where anybody does.
        report: how their data differ, in the form of the event.
    """
    listed = len(names) <= _LISTED
    short = {name: None if report[name] is None else shortened(report[name]) for name in _SHORTENED}
    return kinds.Partition(
        names=list(map(str, names)) if listed else None,
        sizes=list(sizes) if listed and sizes is not None else None,
        weights=list(map(float, weights)) if listed and weights is not None else UNSET,
        judged=list(judged),
        tested=list(judged.values()),
        joins={str(client): at for client, at in sorted(joins.items())},
        leaves={str(client): at for client, at in sorted(leaves.items())},
        newcomers=list(newcomers) if len(newcomers) <= _LISTED else UNSET,
        attackers=list(attackers) if 0 < len(attackers) <= _LISTED else UNSET,
        report=kinds.Report(**{**report, **short}),
    )


def affinity(
    number: int, of: str, clients: Sequence[int], matrix: np.ndarray[Any, np.dtype[Any]]
) -> kinds.Affinity:
    """How clients are related after a round; of many, the first 64 are listed."""
    rows = np.round(matrix[:COMPARED, :COMPARED], _DIGITS).tolist()
    return kinds.Affinity(round=number, of=of, clients=clients[:COMPARED], matrix=rows)


def error(raised: BaseException, number: int) -> kinds.Error:
    """How a run ended by an exception, after the last round that counts."""
    known = raised if isinstance(raised, AtollError) else None
    interrupted = {KeyboardInterrupt: ("Interrupted", 130), Terminated: ("Terminated", 143)}
    usual = type(raised).__name__, known.exit_code if known else 1
    kind, code = interrupted.get(type(raised), usual)
    message = known.message if known else str(raised) or kind.lower()
    hint = known.hint if known else None
    return kinds.Error(kind=kind, message=message, hint=hint, exit_code=code, round=number)


def checksum(value: object) -> int:
    """CRC-32 of bytes, of arrays of bytes one behind the other, or of plain values."""
    if not isinstance(value, Iterator):
        return zlib.crc32(value if isinstance(value, bytes) else json.dumps(value).encode())
    found = 0
    for part in value:
        found = zlib.crc32(part, found)
    return found
