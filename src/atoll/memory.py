"""Clients' memories between rounds: in RAM up to a budget, the rest in a temporary SQLite file."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections import OrderedDict
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from atoll.tensors import Record, flatten_record, leaves, map_leaves, unflatten_record

__all__ = ["MemoryStore", "pack", "unpack"]


def pack(record: Record) -> bytes:
    """A record of tensors and numbers as safetensors bytes."""
    tensors: dict[str, Tensor] = {}
    paths: list[Any] = []
    for at, (path, leaf) in enumerate(flatten_record(record)):
        if isinstance(leaf, Tensor):
            tensors[str(at)] = leaf.detach().cpu().contiguous()
            paths.append([path, None])
        else:
            paths.append([path, {} if isinstance(leaf, dict) else leaf])
    return save(tensors, metadata={"record": json.dumps(paths)})


def unpack(blob: bytes) -> Record:
    """The inverse of `pack`."""
    length = int.from_bytes(blob[:8], "little")
    paths = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["record"])
    tensors = load(blob)
    items = []
    for at, (path, leaf) in enumerate(paths):
        value: Any = tensors.get(str(at), leaf)
        items.append((path, Record() if value == {} and not isinstance(value, Tensor) else value))
    return unflatten_record(items)


class MemoryStore:
    """What each client remembers, by position in the population.

    Args:
        budget: bytes kept in RAM; the least recently used memories beyond it go to a file that is deleted at the end.
    """

    def __init__(self, budget: int = 2 << 30) -> None:
        self.budget = budget
        self.held = 0
        self._recent: OrderedDict[int, Record] = OrderedDict()
        self._file: sqlite3.Connection | None = None

    def get(self, client: int) -> Record | None:
        """The client's memory, or None if it has none yet."""
        if client in self._recent:
            self._recent.move_to_end(client)
            return self._recent[client]
        if self._file is None:
            return None
        row = self._file.execute("SELECT record FROM memory WHERE client = ?", (client,)).fetchone()
        return None if row is None else unpack(row[0])

    def put(self, client: int, memory: Record) -> None:
        """Replace the client's memory."""
        memory = map_leaves(
            lambda v: v.cpu() if isinstance(v, Tensor) and v.device.type != "cpu" else v, memory
        )
        if client in self._recent:
            self.held -= _nbytes(self._recent.pop(client))
        self._recent[client] = memory
        self.held += _nbytes(memory)
        while self.held > self.budget and len(self._recent) > 1:
            self._spill()

    def clients(self) -> list[int]:
        """All clients that remember something, sorted."""
        known = set(self._recent)
        if self._file is not None:
            known |= {row[0] for row in self._file.execute("SELECT client FROM memory")}
        return sorted(known)

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
        self.held -= _nbytes(memory)
        self._file.execute("INSERT OR REPLACE INTO memory VALUES (?, ?)", (client, pack(memory)))

    def close(self) -> None:
        """Forget everything."""
        self._recent.clear()
        self.held = 0
        if self._file is not None:
            self._file.close()
            self._file = None


def _nbytes(record: Record) -> int:
    return sum(v.numel() * v.element_size() for v in leaves(record) if isinstance(v, torch.Tensor))
