"""Facts that survive: what the coordinator has accepted, seen and decided, on the disk before anybody is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from atoll.errors import RunError
from atoll.network.factfile import PASSING, FactFile, FailedError

__all__ = ["Journal"]

_WINDOW = 0.003  # seconds that a commit waits for company, where there was company before


class _Wish(NamedTuple):
    """What one call asks for: what it drops, what it puts, and who waits for it."""

    drop: str | None
    put: Mapping[str, bytes]
    done: Future[None]
    since: float


class Journal:
    """Keys and values in SQLite, durable when `put` returns. Any thread may call; commits are made together.

    Values are what JSON holds: what `get` returns is as it would be after a restart (tuples are lists), and is not to
    be changed. A key is a path, such as "round/3/0/answer/7". Facts under "round/" may be asked for again if their file
    is damaged, and are read from it whenever somebody asks: they are many, and those of rounds that are over are of no
    use but after a restart. All others are kept twice, and in memory (`atoll.network.factfile`). `notices` says what
    was found damaged.

    After a RunError a fact is not there, and may be put again once there is room; where the disk itself failed, all
    further puts raise, and what is there is known after a restart.

    Raises RunError where another process has the file, a newer release wrote it, it cannot be read or written, or is
    damaged beyond what can be asked for again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = FactFile(path)
        self.notices = tuple(self._file.notices)
        self._facts = {key: msgspec.json.decode(value) for key, value in self._file.lasting.items()}
        self._lock = threading.Lock()
        self._asked = threading.Condition()
        self._wishes: list[_Wish] = []
        self._over: str | None = None  # why nothing more is taken
        self.commits, self.lag = 0, 0.0
        """How many commits there were, and the seconds that the last one's first fact waited for it."""
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    # --- what is known ----------------------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """A fact. One under "round/" is read from the disk: that may wait for a commit, and raise RunError."""
        if key.startswith(PASSING):
            return self.known([key]).get(key, default)
        with self._lock:
            return self._facts.get(key, default)

    def known(self, keys: Sequence[str]) -> dict[str, Any]:
        """Those of these facts, all under "round/", that are there.  Raises RunError where they cannot be read."""
        return {key: msgspec.json.decode(value) for key, value in self._file.passing(keys).items()}

    def items(self, prefix: str) -> dict[str, Any]:
        """All facts whose key begins so, by key.  Raises RunError where they cannot be read."""
        return dict(self.walk(prefix))

    def walk(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """The same one after the other: those of many rounds need not be in memory at a time."""
        with self._lock:
            lasting = [(key, value) for key, value in self._facts.items() if key.startswith(prefix)]
        yield from lasting
        for key, value in self._file.walk(prefix):
            yield key, msgspec.json.decode(value)

    # --- what is written --------------------------------------------------------------------------------------

    def put_later(self, key: str, value: Any) -> Future[None]:
        """Write a fact; the future is done once it is durable.  It then raises RunError if it cannot be."""
        return self._wish(None, {key: value})

    def put(self, key: str, value: Any) -> None:
        """Write a fact: it is durable when this returns.  Raises RunError where it cannot be."""
        self.put_later(key, value).result()

    def put_all(self, facts: Mapping[str, Any]) -> None:
        """Write facts: all are durable when this returns, and none is if it raises RunError or never returns."""
        self._wish(None, facts).result()

    def drop(self, path: str) -> None:
        """Forget a fact, or, where the path ends in "/", all facts under it at once.  Raises RunError."""
        self._wish(path, {}).result()

    def close(self) -> None:
        """Write what is still asked for, and let others have the file. A second call does nothing."""
        with self._asked:
            self._over = self._over or "is closed"
            self._asked.notify()
        self._thread.join()
        self._file.close()

    def _wish(self, drop: str | None, put: Mapping[str, Any]) -> Future[None]:
        if "" in put:
            raise ValueError("a fact needs a key")
        # here and not in the thread: what JSON does not hold is the caller's mistake
        encoded = {key: msgspec.json.encode(value) for key, value in put.items()}
        done: Future[None] = Future()
        with self._asked:
            if self._over is not None:
                raise self._refusal()
            self._wishes.append(_Wish(drop, encoded, done, time.monotonic()))
            self._asked.notify()
        return done

    def _refusal(self) -> RunError:
        return RunError(f"{self.path} {self._over}", hint="start the coordinator again")

    # --- the thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        batch: list[_Wish] = []
        company = 0
        try:
            while batch := self._gathered(company):
                company = self._commit(batch)
        except BaseException as error:  # whatever it is, nobody may wait for ever
            with self._asked:
                self._over = f"failed: {error.message if isinstance(error, RunError) else repr(error)}"
                batch += self._wishes
                self._wishes = []
            for wish in batch:
                if not wish.done.done():
                    wish.done.set_exception(self._refusal())

    def _gathered(self, company: int) -> list[_Wish]:
        """What is asked for, at least one; waits a moment for as many as `company`. Nothing once all is over."""
        with self._asked:
            self._asked.wait_for(lambda: self._wishes or self._over)
            if company > 1:
                self._asked.wait_for(lambda: len(self._wishes) >= company or self._over, _WINDOW)
            batch, self._wishes = self._wishes, []
            return batch

    def _commit(self, batch: list[_Wish]) -> int:
        """Write it; how many ask at once: those whose wishes these were, and those who asked meanwhile.

        Of the former alone two halves would take turns for ever, each in the time of the other's commit.
        """
        changes: dict[str, bytes | None] = {}
        for wish in batch:
            if (path := wish.drop) is not None:
                if path.endswith("/"):  # what was asked for before is dropped with it
                    changes = {key: value for key, value in changes.items() if not key.startswith(path)}
                changes[path] = None
            changes |= wish.put
        try:
            if changes:
                self._file.commit(changes)
        except FailedError:
            raise
        except RunError as error:
            for wish in batch:
                wish.done.set_exception(RunError(error.message, hint=error.hint))
            return 0
        with self._lock:
            for key, value in changes.items():
                if value is not None and not key.startswith(PASSING):
                    self._facts[key] = msgspec.json.decode(value)
            for key in self._facts.keys() - self._file.lasting.keys():
                del self._facts[key]
        self.commits, self.lag = self.commits + 1, time.monotonic() - batch[0].since
        company = len(batch) + len(self._wishes)  # before anybody of them asks again
        for wish in batch:
            wish.done.set_result(None)
        return company
