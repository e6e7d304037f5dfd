"""When devices were there, as it was written down: checked, in the order of clients, joined where windows touch."""

from __future__ import annotations

import itertools

import numpy as np

from atoll.errors import DataError

from .draws import Floats, Ints
from .tables import Rows

__all__ = ["HOURS", "windows"]

HOURS = ("active", "inactive")
"""The columns: when the device comes, and when it goes, seconds; numbers with spaces between in CSV, lists in JSON."""


def windows(rows: Rows, order: Ints | None) -> tuple[Floats, Floats, Ints, Floats] | None:
    """`Windows`' starts, ends, cuts and periods, by row or in the `order` of clients; None without such columns.

    Windows come again after ``finish_time``, and only once without one. A row with no list is of a device that is
    always there, and an empty list of one that never is. Raises DataError for windows that are empty, overlap, are out
    of order or end after finish_time, and where nobody is ever there.
    """
    if HOURS[0] not in rows.columns:
        return None
    listed = {
        name: [_listed(rows, row, name, each) for row, each in enumerate(rows.columns[name])]
        for name in HOURS
    }
    periods = _periods(rows)
    always = np.array([each is None for each in listed["active"]])
    for row, (active, inactive) in enumerate(zip(*listed.values(), strict=True)):
        if (active is None) != (inactive is None) or len(active or ()) != len(inactive or ()):
            rows.refuse(
                row,
                f"{len(active or ())} times active, and {len(inactive or ())} inactive",
                "write as many of both",
            )
    sizes = np.array([len(each or ()) for each in listed["active"]], dtype=np.int64)
    owner = np.repeat(np.arange(len(rows)), sizes)
    starts, ends = (
        rows.numbers(
            name, [*itertools.chain.from_iterable(each or () for each in listed[name])], owner.tolist()
        )
        for name in HOURS
    )
    if not (always.any() or len(starts)):
        raise DataError(f"{rows.source}: no device is ever there", hint="write windows: active and inactive")
    _check(rows, owner, starts, ends, periods)
    starts, ends, owner, periods = _joined(starts, ends, owner, periods)
    free = np.flatnonzero(always)
    starts = np.concatenate([starts, np.full(len(free), -np.inf)])
    ends = np.concatenate([ends, np.full(len(free), np.inf)])
    owner = np.concatenate([owner, free])
    periods[free] = np.inf
    if order is not None:
        place = np.empty(len(rows), dtype=np.int64)
        place[order] = np.arange(len(order))
        owner, periods = place[owner], periods[order]
    by_owner = np.argsort(owner, kind="stable")
    cuts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(rows)))]).astype(np.int64)
    return starts[by_owner], ends[by_owner], cuts, periods


def _listed(rows: Rows, row: int, name: str, given: object) -> list[object] | None:
    if given is None or given == "":
        return None
    if isinstance(given, str):
        return [*given.split()]
    if not isinstance(given, list):
        rows.refuse(row, f"{name} = {given!r} is not a list of seconds")
    return given


def _periods(rows: Rows) -> Floats:
    given = rows.columns.get("finish_time", [None] * len(rows))
    there = [row for row, each in enumerate(given) if each is not None and each != ""]
    periods = np.full(len(rows), np.inf)
    periods[there] = rows.numbers("finish_time", [given[row] for row in there], there)
    if len(bad := np.flatnonzero(~(periods > 0))):
        rows.refuse(int(bad[0]), f"finish_time = {periods[bad[0]]:g} is not above 0")
    return periods


def _check(rows: Rows, owner: Ints, starts: Floats, ends: Floats, periods: Floats) -> None:
    number = np.arange(len(owner)) - np.searchsorted(owner, owner)
    for bad, what in (
        (~(starts >= 0), "begins before 0 s"),
        (~(starts < ends), "is empty"),
        (~(ends <= periods[owner]), "ends after finish_time"),
        (
            np.append([False], (owner[1:] == owner[:-1]) & (starts[1:] < ends[:-1]))[: len(owner)],
            "begins before the one before it has ended",
        ),
    ):
        if bad.any():
            at = int(np.argmax(bad))
            span = f"window {number[at] + 1}, from {starts[at]:g} to {ends[at]:g} s,"
            rows.refuse(
                int(owner[at]), f"{span} {what}", "write windows in their order, each with some length"
            )


def _joined(
    starts: Floats, ends: Floats, owner: Ints, periods: Floats
) -> tuple[Floats, Floats, Ints, Floats]:
    """The windows, where those that touch are one, also over the end of the period."""
    if not len(owner):
        return starts, ends, owner, periods
    touch = (owner[1:] == owner[:-1]) & (starts[1:] == ends[:-1])
    begins, finishes = np.append([True], ~touch), np.append(~touch, [True])
    starts, ends, owner = starts[begins], ends[finishes].copy(), owner[begins]
    first = np.append([True], owner[1:] != owner[:-1])
    last = np.append(first[1:], [True])
    head, tail = np.flatnonzero(first), np.flatnonzero(last)
    over = (starts[head] == 0) & (ends[tail] == periods[owner[head]])
    whole = over & (head == tail)  # there all the time
    starts, periods = starts.copy(), periods.copy()
    starts[head[whole]], ends[head[whole]], periods[owner[head[whole]]] = -np.inf, np.inf, np.inf
    over &= ~whole
    ends[tail[over]] += ends[head[over]]
    left = np.ones(len(owner), dtype=np.bool_)
    left[head[over]] = False
    return starts[left], ends[left], owner[left], periods
