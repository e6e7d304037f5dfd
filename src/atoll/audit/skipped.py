"""An attack that has nothing to attack."""

from __future__ import annotations

__all__ = ["Skipped"]


class Skipped(Exception):
    """The attack does not fit this federation; the text says why. Not an error: the audit goes on and says so."""
