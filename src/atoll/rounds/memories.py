"""Clients' memories between rounds: in RAM up to a budget, the rest in a temporary SQLite file."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections import OrderedDict

from torch import Tensor

from atoll.codec import OWN, decode, encode
from atoll.tensors import Record, map_leaves, nbytes

__all__ = ["MemoryStore"]


class MemoryStore:
    """What each client remembers, by position in the population.

    What a round puts is kept apart until `commit`, so that a round that is broken off leaves no trace.

    Args:
        budget: bytes kept in RAM; the least recently used memories beyond it go to a file that is deleted at the end.
    """

    def __init__(self, budget: int = 2 << 30) -> None:
        self.budget = budget
        self.held = 0
        self.changed: set[int] = set()
        """Clients whose memory was committed since a checkpoint last cleared this."""
        self._fresh: dict[int, Record | None] = {}
        self._recent: OrderedDict[int, Record] = OrderedDict()
        self._file: sqlite3.Connection | None = None

    def get(self, client: int) -> Record | None:
        """The client's memory, or None if it has none yet."""
        if client in self._fresh:
            return self._fresh[client]
        if client in self._recent:
            self._recent.move_to_end(client)
            return self._recent[client]
        if self._file is None:
            return None
        row = self._file.execute("SELECT record FROM memory WHERE client = ?", (client,)).fetchone()
        return None if row is None else decode(row[0], limits=OWN)

    def put(self, client: int, memory: Record) -> None:
        """Replace the client's memory."""
        self._fresh[client] = map_leaves(_at_rest, memory)

    def forget(self, client: int) -> None:
        """Keep nothing of a client any more, from the next commit on."""
        self._fresh[client] = None

    def commit(self) -> None:
        """Keep what was put since the last commit, and nothing of those that were to be forgotten."""
        for client in list(self._fresh):
            memory = self._fresh.pop(client)
            if client in self._recent:
                self.held -= nbytes(self._recent.pop(client))
            if memory is None:
                self.changed.discard(client)
                if self._file is not None:
                    self._file.execute("DELETE FROM memory WHERE client = ?", (client,))
                continue
            self._recent[client] = memory
            self.held += nbytes(memory)
            self.changed.add(client)
        while self.held > self.budget and len(self._recent) > 1:
            self._spill()

    def rollback(self) -> None:
        """Forget what was put since the last commit."""
        self._fresh.clear()

    def clients(self) -> list[int]:
        """All clients that remember something, sorted."""
        known = {*self._recent, *self._fresh}
        if self._file is not None:
            known |= {row[0] for row in self._file.execute("SELECT client FROM memory")}
        return sorted(known - {client for client, memory in self._fresh.items() if memory is None})

    def _spill(self) -> None:
        if self._file is None:
            handle, path = tempfile.mkstemp(prefix="atoll-memory-", suffix=".sqlite")
            os.close(handle)
            self._file = sqlite3.connect(path, isolation_level=None)
            os.unlink(path)
            self._file.execute("PRAGMA journal_mode = OFF")
            self._file.execute("PRAGMA synchronous = OFF")
            self._file.execute("CREATE TABLE memory (client INTEGER PRIMARY KEY, record BLOB)")
        client, memory = self._recent.popitem(last=False)
        self.held -= nbytes(memory)
        self._file.execute("INSERT OR REPLACE INTO memory VALUES (?, ?)", (client, encode(memory)))

    def close(self) -> None:
        """Forget everything."""
        self._fresh.clear()
        self._recent.clear()
        self.changed.clear()
        self.held = 0
        if self._file is not None:
            self._file.close()
            self._file = None


def _at_rest(leaf: object) -> object:
    """A leaf as it is kept: tensors in main memory, contiguous."""
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.cpu()
    return leaf if leaf.is_contiguous() else leaf.contiguous()
