"""Windows of the day, on the node's own clock."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from atoll.errors import ConfigError

__all__ = ["Window", "opens", "windows"]

_DAY = 24 * 3600
_FORM = re.compile(r"\s*(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)\s*", re.ASCII)


class Window(NamedTuple):
    """From `begin` until before `end`, in seconds after midnight; over midnight where `end` is not after `begin`."""

    begin: int
    end: int

    def wait(self, second: int) -> int:
        """Seconds until it is open, 0 while it is. The clock is taken to go on evenly, whatever the date."""
        length = (self.end - self.begin) % _DAY or _DAY
        return 0 if (second - self.begin) % _DAY < length else (self.begin - second) % _DAY


def windows(texts: Sequence[str]) -> tuple[Window, ...]:
    """Windows written as "20:00-06:00".  Raises ConfigError.

    >>> windows(["20:00-06:00"])[0].wait(19 * 3600)
    3600
    """
    return tuple(_window(text) for text in texts)


def _window(text: str) -> Window:
    hint = 'write hours = "20:00-06:00", in local time, or a list of such windows'
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(f"hours = {text!r} is no window of the day", hint=hint)
    hours = [int(each) for each in found.groups()]
    begin, end = (hours[0] * 60 + hours[1]) * 60, (hours[2] * 60 + hours[3]) * 60
    if max(hours[1], hours[3]) > 59 or begin >= _DAY or end > _DAY:
        raise ConfigError(f"hours = {text!r}: there is no such time", hint=hint)
    if begin == end:
        raise ConfigError(
            f"hours = {text!r} ends where it begins",
            hint='"00:00-24:00" is the whole day; or leave hours out',
        )
    return Window(begin, end % _DAY)


def opens(found: Sequence[Window], now: datetime) -> float:
    """Seconds until one of these is open, 0 while one is. The end of a window belongs to what follows."""
    if not found:
        return 0.0
    second, part = (now.hour * 60 + now.minute) * 60 + now.second, now.microsecond / 1e6
    wait = min(each.wait(second) for each in found)
    return wait - part if wait else 0.0
