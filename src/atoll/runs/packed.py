"""Small ways to write things down: sets of clients, quantiles of many values, numbers with few digits."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["pack", "quantiles", "short", "unpack"]


def pack(clients: Sequence[int]) -> dict[str, Any]:
    """Clients as {"gaps": [first, differences ...]} or {"bits": base64, bit k of byte k // 8}, whichever is shorter."""
    found = sorted(clients)
    if not found:
        return {"gaps": []}
    gaps = [found[0], *(b - a for a, b in pairwise(found))]
    if sum(len(str(gap)) + 1 for gap in gaps) <= (found[-1] // 24 + 1) * 4:
        return {"gaps": gaps}
    bits = bytearray(found[-1] // 8 + 1)
    for client in found:
        bits[client >> 3] |= 1 << (client & 7)
    return {"bits": base64.b64encode(bits).decode()}


def unpack(packed: Mapping[str, Any]) -> list[int]:
    """The clients, ascending."""
    if "gaps" in packed:
        clients, last = [], 0
        for gap in packed["gaps"]:
            last += gap
            clients.append(last)
        return clients
    bits = base64.b64decode(packed["bits"])
    return [8 * index + bit for index, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1]


def quantiles(values: Iterable[float | None]) -> list[float] | None:
    """p10, median and p90 (linear between neighbours), or None where nothing is known."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    found = []
    for part in (0.1, 0.5, 0.9):
        place = part * (len(known) - 1)
        low = int(place)
        high = min(low + 1, len(known) - 1)
        found.append(short(known[low] + (known[high] - known[low]) * (place - low), 4))
    return found


def short(value: Any, digits: int = 5) -> Any:
    """A float with so many significant digits; anything else as it is."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
