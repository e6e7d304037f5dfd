"""Virtual times as they are written: 3600s, 60min, 1h."""

from __future__ import annotations

import math
import re

__all__ = ["seconds"]

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_FORM = re.compile(r"(.*?)\s*(s|min|h)")


def seconds(text: str) -> float | None:
    """Seconds of a number with a unit; None for what has no unit.  Raises ValueError for a unit without a number.

    >>> [seconds(text) for text in ("90s", "1.5 min", "2h", "90")]
    [90.0, 90.0, 7200.0, None]
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        return None
    value = float(found[1]) * _UNITS[found[2]]
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError
    return value
