"""The journal's file: rows in SQLite, each with a sum, and a small second file for what must never be lost.

Facts under "round/" can be asked for again, and are many: they are in the database only, and read when somebody asks.
All others (who has which number, which run it is) cannot be asked for again: they are kept twice, and in memory. The
second file is prepared before the database commits and put in place after it: the generation in both says which of
them is behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from msgspec import Struct

from atoll.durable import beside, sync
from atoll.errors import RunError
from atoll.network.disk import Hold, trouble
from atoll.network.wal import Tail

__all__ = ["PASSING", "FactFile", "FailedError"]

_FORMAT = 1
PASSING = "round/"
"""What the keys of facts begin with that can be asked for again."""

_PAGE = 500  # rows that are read at a time
_HEAD = ""  # the key of the row that holds the generation
_NEXT = chr(ord("/") + 1)  # what comes after all keys under a path
_NO_ROOM = {"SQLITE_FULL", "SQLITE_IOERR_WRITE"}  # nothing is lost by these, and room may be made
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
_DISK = "look after the disk, and who may write there"

_log = logging.getLogger(__name__)


class FailedError(RunError):
    """The disk or SQLite failed so that only opening the file again tells what is in it."""


class _BrokenError(Exception):
    """The database is none, or its pages contradict each other."""


class _Lasting(Struct, frozen=True, forbid_unknown_fields=True):
    """The second file's first line; the other is its SHA-256."""

    format: int
    generation: int
    facts: dict[str, msgspec.Raw]


class FactFile:
    """Facts as they are on the disk: JSON by key. One process has it; one thread at a time may write, any may read.

    `lasting` are those that are kept twice. `notices` are sentences about what was found damaged; they are logged, too.

    Raises RunError where another process has the file, a newer release wrote it, it cannot be read or written, or what
    must not be lost is damaged in both files.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.copy = path, path.with_suffix(".lasting.json")
        self.lasting: dict[str, bytes] = {}
        self._connected = threading.Lock()
        self.notices: list[str] = []
        self._generation = 0
        self._base: sqlite3.Connection | None = None
        self._hold: Hold | None = Hold(path)
        try:
            self._recover()
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.Error):
                raise RunError(f"{path}: {error}", hint=_DISK) from error
            if isinstance(error, OSError):
                raise trouble(path, error) from error
            raise

    def close(self) -> None:
        """Let others have it; a second call does nothing."""
        with self._connected:
            if self._base is not None:
                self._base.close()
                self._base = None
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    # --- reading ----------------------------------------------------------------------------------------------

    def passing(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Those of these facts that are there.  Raises RunError where the file cannot be read."""
        return dict(self._asked(("SELECT key, value, sum FROM facts WHERE key = ?", (key,)) for key in keys))

    def walk(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Facts that can be asked for again whose keys begin so, in the order of keys.  Raises RunError.

        They are read some at a time: what is written meanwhile may be among them.
        """
        prefix = PASSING if PASSING.startswith(prefix) else prefix
        if not prefix.startswith(PASSING):
            return
        after, last = prefix, prefix + "\U0010ffff"
        asked = "SELECT key, value, sum FROM facts WHERE key {} ? AND key < ? ORDER BY key LIMIT ?"
        rows = [*self._asked([(asked.format(">="), (after, last, _PAGE))])]
        while rows:
            yield from rows
            after = rows[-1][0]
            rows = [*self._asked([(asked.format(">"), (after, last, _PAGE))])]

    def _asked(self, selects: Iterable[tuple[str, tuple[Any, ...]]]) -> Iterator[tuple[str, bytes]]:
        """(key, value) of the rows that are found; those that are not what was written are none."""
        with self._connected:
            base = self._base
            if base is None:
                raise RunError(f"{self.path} is closed", hint="start the coordinator again")
            try:
                found = [row for select, given in selects for row in base.execute(select, given).fetchall()]
            except sqlite3.Error as error:
                raise RunError(f"{self.path}: {error}", hint=_DISK) from error
        for key, value, total in found:
            if isinstance(value, bytes) and total == _sum(key, value):
                yield key, value
            else:
                self._say(f"{self.path}: what stands under {key!r} is not what was written")

    # --- writing ----------------------------------------------------------------------------------------------

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        """Write these facts, all of them, durably, or none. None stands for one that is to go, or, where its key ends
        in "/", for all under it; those go before others are written.

        Raises RunError where there is no room, and FailedError after which no more may be written; whether these facts
        are there is known once the file is opened again.
        """
        passing = all(key.startswith(PASSING) for key in changes)
        (self._write if passing else self._write_twice)(changes)

    def _write_twice(self, changes: Mapping[str, bytes | None], *, anew: bool = False) -> None:
        generation = self._generation + 1
        lasting = _applied(self.lasting, changes)
        held = {key: msgspec.Raw(value) for key, value in lasting.items()}
        line = msgspec.json.encode(_Lasting(_FORMAT, generation, held))
        try:
            part = beside(self.copy, line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n")
        except OSError as error:
            raise trouble(self.copy, error) from error
        try:
            self._write({**changes, _HEAD: str(generation).encode()}, anew=anew)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self._generation, self.lasting = generation, lasting
        try:
            part.replace(self.copy)
            sync(self.copy.parent)
        except OSError as error:
            raise FailedError(f"{self.copy}: {error}", hint=_DISK) from error

    def _write(self, changes: Mapping[str, bytes | None], *, anew: bool = False) -> None:
        dropped = [key for key, value in changes.items() if value is None]
        gone = [(key,) for key in dropped if not key.endswith("/")]
        under = [(path, path[:-1] + _NEXT) for path in dropped if path.endswith("/")]
        rows = [(key, value, _sum(key, value)) for key, value in changes.items() if value is not None]
        with self._connected:  # nobody reads what may be taken back
            base = self._base
            assert base is not None
            try:
                base.execute("BEGIN IMMEDIATE")
                if anew:
                    base.execute("DELETE FROM facts")
                base.executemany("DELETE FROM facts WHERE key = ?", gone)
                base.executemany("DELETE FROM facts WHERE key >= ? AND key < ?", under)
                base.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", rows)
                base.execute("COMMIT")
            except sqlite3.Error as error:
                kind = RunError if getattr(error, "sqlite_errorname", "") in _NO_ROOM else FailedError
                try:
                    if base.in_transaction:
                        base.execute("ROLLBACK")
                except sqlite3.Error:
                    kind = FailedError
                hint = "make room on the disk" if kind is RunError else _DISK
                raise kind(f"{self.path}: {error}", hint=hint) from error

    # --- opening ----------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Read both files, take each fact from the one that has it, and make them agree."""
        for part in self.path.parent.glob(f"own-{self.copy.name}-*.part"):
            part.unlink()  # of a process that was killed
        copy = self._copied()
        try:
            generation, rotten, found = self._read()
        except _BrokenError as error:
            if copy is None:
                self._both(str(error))
            self._set_aside(str(error))
            generation, rotten, found = self._read()
        for key in rotten:
            self._say(f"{self.path}: what stands under {key or 'its head'!r} is not what was written")
        facts, stored = (
            found,
            {} if rotten else found,
        )  # SQLite may miss keys beside a wrong one: write all anew
        if copy is not None and copy.generation >= generation:
            if copy.generation > generation:
                self._say(
                    f"{self.path} is behind {self.copy.name}: some of the round has to be asked for again"
                )
            passing = {key: value for key, value in found.items() if key.startswith(PASSING)}
            facts = passing | {key: bytes(raw) for key, raw in copy.facts.items()}
        elif any(not key.startswith(PASSING) for key in rotten):
            self._both("rows are not what was written")
        elif not generation and self.copy.exists():
            self._both("it is gone, or has lost its end")
        self._generation = max(generation, 0 if copy is None else copy.generation)
        self.lasting = {key: value for key, value in facts.items() if not key.startswith(PASSING)}
        changes: dict[str, bytes | None] = dict.fromkeys(stored.keys() - facts.keys())
        changes |= {key: value for key, value in facts.items() if stored.get(key) != value}
        if changes or rotten or (self._generation and (copy is None or copy.generation != generation)):
            self._write_twice(changes, anew=bool(rotten))
        sync(self.path.parent)

    def _read(self) -> tuple[int, list[str], dict[str, bytes]]:
        """Open the database and read all rows; its generation, the keys of rows that are not what was written, and
        the facts.
        """
        tail = Tail(self.path)
        base = self._base = sqlite3.connect(
            self.path, isolation_level=None, timeout=1.0, check_same_thread=False
        )
        try:
            base.execute("PRAGMA locking_mode = EXCLUSIVE")  # first: then the log's index is no file
            (version,) = base.execute("PRAGMA user_version").fetchone()
            if version > _FORMAT:
                self._newer(self.path, version)
            for each in (
                "journal_mode = WAL",
                "synchronous = FULL",
                "fullfsync = ON",
                "checkpoint_fullfsync = ON",
            ):
                base.execute(f"PRAGMA {each}").fetchall()
            (found,) = base.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise _BrokenError(found.splitlines()[-1])
            used = self._emptied(base)
            if version == 0:
                base.execute(
                    "CREATE TABLE IF NOT EXISTS facts"
                    " (key TEXT PRIMARY KEY, value BLOB NOT NULL, sum BLOB NOT NULL) WITHOUT ROWID"
                )
                base.execute(f"PRAGMA user_version = {_FORMAT}")
            rows = base.execute("SELECT CAST(key AS BLOB), value, sum FROM facts").fetchall()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN:
                raise _BrokenError(str(error)) from error
            raise
        if used is not None and tail.lost(used):
            self._say(f"the end of {tail.path} is damaged: what stands before it is kept")
        return self._checked(rows)

    @staticmethod
    def _emptied(base: sqlite3.Connection) -> int | None:
        """Bring the log into the database; of how many frames it was. None where there is no room for that now."""
        try:
            _, used, _ = base.execute("PRAGMA wal_checkpoint").fetchone()
        except sqlite3.Error as error:
            if error.sqlite_errorname in _NO_ROOM:
                return None
            raise
        return int(used)

    @staticmethod
    def _checked(rows: list[tuple[Any, Any, Any]]) -> tuple[int, list[str], dict[str, bytes]]:
        facts: dict[str, bytes] = {}
        generation, rotten = 0, []
        for name, value, total in rows:
            key = (name or b"").decode("utf-8", "replace")
            if not (isinstance(value, bytes) and total == _sum(key, value)):
                rotten.append(key)
            elif key == _HEAD:
                generation = int(value)
            else:
                facts[key] = value
        return generation, rotten, facts

    def _copied(self) -> _Lasting | None:
        """What the second file says; None where it is not there, or not whole."""
        try:
            lines = self.copy.read_bytes().split(b"\n")
        except FileNotFoundError:
            return None
        if len(lines) != 3 or hashlib.sha256(lines[0]).hexdigest().encode() != lines[1]:
            self._say(f"{self.copy} is damaged")
            return None
        version = msgspec.json.decode(lines[0])["format"]
        if version > _FORMAT:
            self._newer(self.copy, version)
        return msgspec.json.decode(lines[0], type=_Lasting)

    def _set_aside(self, why: str) -> None:
        if self._base is not None:
            self._base.close()
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.broken-{number}")).exists():
            number += 1
        self.path.rename(aside)  # before its log: SQLite removes one that has no database
        with contextlib.suppress(FileNotFoundError):
            self.path.with_name(f"{self.path.name}-wal").rename(f"{aside}-wal")
        sync(self.path.parent)
        self._say(f"{self.path} is damaged ({why}); it was moved to {aside.name}")

    def _say(self, notice: str) -> None:
        self.notices.append(notice)
        _log.warning("%s", notice)

    def _both(self, why: str) -> NoReturn:
        raise RunError(
            f"{self.path} is damaged ({why}), and {self.copy.name} does not have what it held",
            hint="put copies of both files in their place, or begin a new run in another directory",
        )

    @staticmethod
    def _newer(path: Path, version: int) -> NoReturn:
        raise RunError(
            f"{path} has format {version}, and this release of atoll knows {_FORMAT}",
            hint="install the release that wrote it",
        )


def _applied(facts: Mapping[str, bytes], changes: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """The lasting facts after these changes."""
    gone = tuple(key for key, value in changes.items() if value is None and key.endswith("/"))
    left = {key: value for key, value in facts.items() if not (gone and key.startswith(gone))}
    for key, value in changes.items():
        if key.startswith(PASSING):
            continue
        if value is None:
            left.pop(key, None)
        else:
            left[key] = value
    return left


def _sum(key: str, value: bytes) -> bytes:
    return hashlib.blake2b(key.encode() + b"\0" + value, digest_size=16).digest()
