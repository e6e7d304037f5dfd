"""All protocols that learn, by name."""

from __future__ import annotations

from atoll.vertical.protocol import Protocol

__all__ = ["PROTOCOLS"]

PROTOCOLS: dict[str, type[Protocol]] = {}
