"""Facts that survive: what the coordinator has accepted, seen and decided, on the disk before anybody is told."""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec

from atoll.errors import RunError

__all__ = ["Journal"]

_WINDOW = 0.005  # seconds that a commit waits for company


class Journal:
    """Keys and values in SQLite, durable when `put` returns. Any thread may call; commits are made together.

    Values are what JSON holds. A key is a path, such as "round/3/0/answer/7".
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._facts: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[str, Any, Future[None]] | None] = queue.SimpleQueue()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()
        self._ready.result()

    # --- what is known ----------------------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        with self._lock:
            return self._facts.get(key, default)

    def items(self, prefix: str) -> dict[str, Any]:
        """All facts whose key begins so, by key."""
        with self._lock:
            return {key: value for key, value in self._facts.items() if key.startswith(prefix)}

    # --- what is written --------------------------------------------------------------------------------------

    def put_later(self, key: str, value: Any) -> Future[None]:
        """Write a fact; the future is done once it is durable.  It then raises RunError if it cannot be."""
        done: Future[None] = Future()
        self._queue.put((key, value, done))
        return done

    def put(self, key: str, value: Any) -> None:
        self.put_later(key, value).result()

    def drop(self, prefix: str) -> None:
        """Forget all facts whose key begins so."""
        keys = list(self.items(prefix))
        for done in [self.put_later(key, None) for key in keys]:
            done.result()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    # --- the thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            base = sqlite3.connect(self.path, isolation_level=None)
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = FULL")
            base.execute("CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
            for key, value in base.execute("SELECT key, value FROM facts"):
                self._facts[key] = msgspec.json.decode(value)
        except BaseException as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        ended = False
        while not ended:
            batch = [self._queue.get()]
            if batch[0] is not None:
                threading.Event().wait(_WINDOW)
            while not self._queue.empty():
                batch.append(self._queue.get())
            ended = None in batch
            facts = [each for each in batch if each is not None]
            if facts:
                self._commit(base, facts)
        base.close()

    def _commit(self, base: sqlite3.Connection, facts: Iterable[tuple[str, Any, Future[None]]]) -> None:
        try:
            base.execute("BEGIN")
            for key, value, _ in facts:
                if value is None:
                    base.execute("DELETE FROM facts WHERE key = ?", (key,))
                else:
                    row = key, msgspec.json.encode(value)
                    base.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", row)
            base.execute("COMMIT")
        except sqlite3.Error as error:
            if base.in_transaction:
                base.execute("ROLLBACK")
            for *_, done in facts:
                done.set_exception(RunError(f"{self.path}: {error}", hint="make room on the disk"))
            return
        with self._lock:
            for key, value, _ in facts:
                if value is None:
                    self._facts.pop(key, None)
                else:
                    self._facts[key] = value
        for *_, done in facts:
            done.set_result(None)
