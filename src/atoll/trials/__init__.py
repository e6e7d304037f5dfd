"""Several runs at once: comparing federations over seeds, and sweeping a grid of settings."""

from __future__ import annotations

from atoll.trials.compared import compare
from atoll.trials.sweeping import sweep

__all__ = ["compare", "sweep"]
