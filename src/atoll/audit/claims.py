"""The epsilon that a run reports of itself."""

from __future__ import annotations

from atoll.federation import Federation

__all__ = ["DELTA", "reported"]

DELTA = 1e-5
"""The chance of failure at which audits compare."""


def reported(federation: Federation) -> float | None:
    """The epsilon, for one client added or removed, of all rounds of the run; None where nobody accounts for it."""
    return federation.keeper.spending.promised(federation.rounds, DELTA)
