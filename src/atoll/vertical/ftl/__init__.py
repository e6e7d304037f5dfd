"""Transfer between a party with labels and one without, with different columns and only some rows in common."""

from __future__ import annotations

from atoll.vertical.ftl.protocol import FTL

__all__ = ["FTL"]
