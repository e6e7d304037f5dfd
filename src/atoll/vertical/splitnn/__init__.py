"""Split networks: a network below at each party, the rest of it where the label is (`docs/vertical.md`)."""

from __future__ import annotations

from atoll.vertical.splitnn.marvell import Noise, auc_bound, least_noise
from atoll.vertical.splitnn.protocol import SplitNN

__all__ = ["Noise", "SplitNN", "auc_bound", "least_noise"]
