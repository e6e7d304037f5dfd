"""Devices that were written down: a row for each client, or rows that clients draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.errors import ConfigError, DataError, suggest

from . import draws
from .draws import Floats, Ints
from .parts import Part
from .presence import Windows
from .tables import Rows, check_columns
from .windows import HOURS, windows

__all__ = ["COLUMNS", "Trace", "trace"]

_POSITIVE = ("above 0", lambda v: (v > 0) & np.isfinite(v))
_NOT_NEGATIVE = ("0 or more", lambda v: (v >= 0) & np.isfinite(v))

COLUMNS: dict[str, tuple[str, Callable[[Floats], NDArray[np.bool_]]]] = {
    **dict.fromkeys(("speed", "flops", "computation", "download", "upload", "communication"), _POSITIVE),
    **dict.fromkeys(("latency", "watts", "radio"), _NOT_NEGATIVE),
    "memory": ("above 0", lambda v: v > 0),
    "failure": ("from 0 to 1", lambda v: (v >= 0) & (v <= 1)),
}
"""What may be said of a device beside its hours, and what values must be."""

_IGNORED = ("duration", "model", "joins", "leaves")
"""FedScale's: what follows from the windows, and what the device is called. And what membership reads."""
_INSTEAD = {"flops": ("speed",), "computation": ("speed",), "communication": ("download", "upload")}
_TOGETHER = (("download", "upload"), HOURS)
_FORWARD_AND_BACKWARD = 3.0  # times the forward pass alone


class Trace(Part):
    """Fields of the devices, by row."""

    def __init__(self, fields: Mapping[str, Floats], row: Callable[[int, Ints], Ints]) -> None:
        self.fields, self.row = fields, row

    @property
    def says(self) -> tuple[str, ...]:
        return tuple(self.fields)

    def values(self, seed: int, clients: Ints) -> Mapping[str, Floats]:
        rows = self.row(seed, clients)
        return {name: values[rows] for name, values in self.fields.items()}


class Read(NamedTuple):
    """What a file said: what devices can do, when they are there, or both."""

    part: Trace | None
    presence: Windows | None


def trace(
    rows: Rows, *, clients: int, names: Sequence[object] | None, flop: float | None, drawn: bool = False
) -> Read:
    """Devices from rows: a row for each of so many clients, or, `drawn`, rows of which each client draws one.

    Columns are the fields of `Profiles`; or ``flops`` (floating point operations a second, `flop` of which a training
    step takes per sample) or ``computation`` (milliseconds that one sample takes forward; three times that in training)
    for the speed; ``communication`` (kilobits a second) for both bandwidths; and ``active``, ``inactive``,
    ``finish_time`` for when the device is there (`windows`).

    Raises DataError for what a row or a column has wrong, ConfigError where `flops` needs `flop`.
    """
    check_columns(rows, (*COLUMNS, *HOURS, "finish_time"), _IGNORED)
    _check_together(rows)
    order = None if drawn else _order(rows, clients, names)
    fields = _fields(rows, flop)
    hours = windows(rows, order)
    if not fields and hours is None:
        raise DataError(
            f"{rows.source}: no column says anything about devices", hint=f"known: {', '.join(COLUMNS)}"
        )
    many = len(rows)

    def row(purpose: str) -> Callable[[int, Ints], Ints]:
        def chosen(seed: int, clients: Ints) -> Ints:
            found: Ints = (draws.uniform(draws.start(seed, purpose), clients) * many).astype(np.int64)
            return found

        return chosen if drawn else lambda seed, clients: clients

    if order is not None:
        fields = {name: values[order] for name, values in fields.items()}
    # What one file says of a device stays together; files that say different things are drawn from apart.
    purpose = f"device row: {' '.join(sorted(fields)) or 'hours'}"
    return Read(
        Trace(fields, row(purpose)) if fields else None,
        Windows(*hours, row(purpose)) if hours is not None else None,
    )


def _check_together(rows: Rows) -> None:
    """Columns that need each other are all there; those that say the same are not."""
    for pair in _TOGETHER:
        absent = [name for name in pair if name not in rows.columns]
        if len(absent) == 1:
            raise DataError(
                f"{rows.source}: column {absent[0]!r} is missing", hint=f"{' and '.join(pair)} go together"
            )
    if "finish_time" in rows.columns and HOURS[0] not in rows.columns:
        raise DataError(
            f"{rows.source}: column 'active' is missing", hint="finish_time is the end of such windows"
        )
    for name, others in _INSTEAD.items():
        for other in (*others, *(each for each in _INSTEAD if _INSTEAD[each] == others and each > name)):
            if name in rows.columns and other in rows.columns:
                raise DataError(
                    f"{rows.source}: {name} and {other} say the same", hint="leave one of them out"
                )


def _order(rows: Rows, clients: int, names: Sequence[object] | None) -> Ints:
    """The row of each client."""
    source, ids = rows.source, rows.ids
    if ids is None:
        message = f"{source}: column 'client' is missing"
        raise DataError(message, hint=f"say whose device each row is, or let clients draw: drawn:{source}")
    known = range(clients) if names is None else names
    position = {str(name): at for at, name in enumerate(known)}
    strange = [row for row, each in enumerate(ids) if each not in position]
    if strange:
        more = f" (nor {len(strange) - 1} others)" if len(strange) > 1 else ""
        near = (
            suggest(ids[strange[0]], [str(known[at]) for at in range(min(clients, 1000))])
            if clients < 50
            else None
        )
        rows.refuse(strange[0], f"there is no client {ids[strange[0]]!r}{more}", near)
    order = np.full(clients, -1, dtype=np.int64)
    order[[position[each] for each in ids]] = np.arange(len(ids))
    if len(absent := np.flatnonzero(order < 0)):
        shown = ", ".join(repr(str(known[int(at)])) for at in absent[:5]) + (
            ", ..." if len(absent) > 5 else ""
        )
        raise DataError(
            f"{source}: {len(absent)} of {clients} clients have no row: {shown}",
            hint=f"add them, or let clients draw their devices: drawn:{source}",
        )
    return order


def _fields(rows: Rows, flop: float | None) -> dict[str, Floats]:
    """The fields of `Profiles` that columns say, by row."""
    found: dict[str, Floats] = {}
    for name in (name for name in rows.columns if name in COLUMNS):
        values = rows.numbers(name, rows.columns[name])
        wants, holds = COLUMNS[name]
        if len(bad := np.flatnonzero(~holds(values))):
            rows.refuse(int(bad[0]), f"{name} = {values[bad[0]]:g} is not {wants}")
        if name == "computation":
            found["speed"] = 1000.0 / (_FORWARD_AND_BACKWARD * values)
        elif name == "communication":
            found["download"] = found["upload"] = values * (1000 / 8)
        elif name == "flops":
            if flop is None:
                message = f"{rows.source}: flops says nothing without a model whose operations can be counted"
                raise ConfigError(message, hint="write speed instead, in samples a second")
            found["speed"] = values / flop
        else:
            found[name] = values
    return found
