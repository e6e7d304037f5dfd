"""Entity alignment: which rows parties have in common, by private set intersection (`docs/vertical.md`)."""

from __future__ import annotations

from atoll.vertical.alignment.align import Alignment, Common, Reveal, align
from atoll.vertical.alignment.ids import normal
from atoll.vertical.alignment.kinds import KINDS

__all__ = ["KINDS", "Alignment", "Common", "Reveal", "align", "normal"]
