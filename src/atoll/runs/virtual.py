"""What a run was on the virtual clock, from what its rounds were: totals, and orders client by client.

Virtual seconds are how long the clients' devices would have taken. They are never added to the seconds of the machine
that simulates, and never shown under the same name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.runs.events import Event

__all__ = ["Order", "orders", "totals"]


def totals(
    clocks: Sequence[Mapping[str, Any]], reached: Mapping[str, Any] | None = None
) -> dict[str, float | None]:
    """Of rounds' clocks (`docs/runs.md`), and that of the round in which the target was reached; empty without any.

    `virtual_seconds` is when the last one ended, `target_virtual_seconds` when the target was reached, `energy` is in
    joules, `wasted` the share of client-seconds whose replies were not used, `staleness` the mean over the replies
    that were.
    """
    if not clocks:
        return {}
    used, spent = sum(c["used"] for c in clocks), sum(c["spent"] for c in clocks)
    return {
        "virtual_seconds": clocks[-1]["ended"],
        "target_virtual_seconds": reached["ended"] if reached else None,
        "energy": sum(c["energy"] for c in clocks),
        "wasted": sum(c["wasted"] for c in clocks) / spent if spent else 0.0,
        "staleness": sum(c["staleness"] * c["used"] for c in clocks) / used if used else 0.0,
    }


@dataclass(frozen=True)
class Order:
    """What a round says of one client's order, in virtual seconds since the run began.

    `done` is when the reply came, the work broke off or the round ended. `used` says whether the round used the reply.
    Of one that is kept for a later round there are two orders: here it is `kept`, and there it is done.
    """

    client: int
    round: int
    began: float
    download: float
    compute: float
    upload: float
    done: float
    staleness: float
    used: bool
    late: bool
    failed: bool
    kept: bool


def orders(event: Event, keeps: bool = False) -> list[Order]:
    """The orders of a round's event; none without a clock.

    Args:
        keeps: whether late replies are kept for later rounds (the setting `late`).
    """
    clock, columns = event.get("clock"), event.get("clients") or {}
    if not clock or "began" not in columns:
        return []
    late, failed = set(clock.get("late") or ()), set(clock.get("failed") or ())
    found = []
    for place, client in enumerate(event.get("cohort") or ()):
        times = {name: _number(columns.get(name) or (), place) for name in _TIMES}
        if math.isnan(times["began"]) or math.isnan(times["done"]):
            continue  # it was not asked: it had time for no step
        used = any(not math.isnan(_number(columns.get(name) or (), place)) for name in _ANSWERED)
        found.append(
            Order(
                client=client, round=event["round"], **times, used=used, late=client in late,
                failed=client in failed and not used, kept=keeps and client in late and not used,
            )
        )  # fmt: skip
    return found


_ANSWERED = ("samples", "loss", "end")
"""Of those whose replies were used, one of these is known; of the others none is."""

_TIMES = ("began", "download", "compute", "upload", "done", "staleness")


def _number(column: Sequence[Any], place: int) -> float:
    value = column[place] if place < len(column) else None
    return math.nan if value is None else float(value)
