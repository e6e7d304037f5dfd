"""What a run is after a round, as it is handed over to be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from atoll.tensors import Record

__all__ = ["Snapshot", "Store"]


class Store(Protocol):
    """What clients remember. What is put counts once it is committed."""

    changed: set[int]
    """Clients whose memory was committed since a checkpoint last cleared this."""

    def get(self, client: int) -> Record | None:
        """The client's memory, or None if it has none yet."""

    def put(self, client: int, memory: Record) -> None:
        """Replace the client's memory."""

    def commit(self) -> None:
        """Keep what was put since the last commit."""

    def rollback(self) -> None:
        """Forget what was put since the last commit."""

    def clients(self) -> list[int]:
        """All clients that remember something, sorted."""


@dataclass(frozen=True)
class Snapshot:
    """A run after round `number`, 0 being before the first.

    `records` are what it goes on from, by name; each becomes a file of a checkpoint. One of them is "state", of which
    the last one that an evaluation found finite is kept beside it, as "sound". A snapshot refers to tensors and copies
    none, so they must not change in place. `store` is what clients remember, as it is now; `facts` are further plain
    values, such as the engine.
    """

    number: int
    records: Mapping[str, Record]
    store: Store | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
