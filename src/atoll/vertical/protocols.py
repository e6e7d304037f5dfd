"""All protocols that learn, by name."""

from __future__ import annotations

from dataclasses import fields

from atoll.vertical.features.table import FeatureTable
from atoll.vertical.ftl import FTL
from atoll.vertical.glm import GLM
from atoll.vertical.protocol import Protocol
from atoll.vertical.secureboost import SecureBoost
from atoll.vertical.splitlora import SplitLoRA
from atoll.vertical.splitnn import SplitNN

__all__ = ["PROTOCOLS", "describe"]

PROTOCOLS: dict[str, type[Protocol]] = {
    each.name: each for each in (SecureBoost, GLM, SplitNN, SplitLoRA, FTL, FeatureTable)
}


def describe() -> list[tuple[str, str]]:
    """Each protocol's name, and what it is, takes and can be set to, in a line."""
    found = [("psi", "finds the rows that all parties have, and learns nothing else")]
    for name, kind in PROTOCOLS.items():
        given = ", ".join(each.name for each in fields(kind))
        about = (
            f"{kind.says}; tasks {', '.join(kind.tasks)}; crypto {', '.join(kind.ciphers)}; settings {given}"
        )
        found.append((name, about))
    return found
