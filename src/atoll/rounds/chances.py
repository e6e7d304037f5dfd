"""How cohorts are drawn, as accounting for privacy has it."""

from __future__ import annotations

from atoll.privacy import Everyone, Fixed, Poisson, Sampling
from atoll.rounds import choosing

__all__ = ["chances"]


def chances(choice: choosing.Choice, size: int, present: int) -> Sampling:
    """Of cohorts of `size` clients, by coins on average, of those present."""
    if size >= present:
        return Everyone()
    return Poisson(size / present) if isinstance(choice, choosing.Poisson) else Fixed(size, present)
