"""Parties with different columns about the same rows, or with neither in common (`docs/vertical.md`)."""

from __future__ import annotations

from atoll.vertical.fitting import Fitted, fit, run
from atoll.vertical.party import Party
from atoll.vertical.protocol import Case, Progress, Protocol
from atoll.vertical.protocols import PROTOCOLS
from atoll.vertical.settings import Vertical, Where
from atoll.vertical.side import Side
from atoll.vertical.stored import Stored

__all__ = [
    "PROTOCOLS",
    "Case",
    "Fitted",
    "Party",
    "Progress",
    "Protocol",
    "Side",
    "Stored",
    "Vertical",
    "Where",
    "fit",
    "run",
]
