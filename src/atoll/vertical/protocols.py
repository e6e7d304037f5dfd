"""All protocols that learn, by name."""

from __future__ import annotations

from atoll.vertical.ftl import FTL
from atoll.vertical.glm import GLM
from atoll.vertical.protocol import Protocol
from atoll.vertical.secureboost import SecureBoost
from atoll.vertical.splitnn import SplitNN

__all__ = ["PROTOCOLS"]

PROTOCOLS: dict[str, type[Protocol]] = {each.name: each for each in (SecureBoost, GLM, SplitNN, FTL)}
