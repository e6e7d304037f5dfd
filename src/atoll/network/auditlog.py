"""Who did what and when: an audit log, of which every record is on the disk before `write` returns.

Its lines are chained by hashes (`atoll.network.chain`, which says what that shows and what not).
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.durable import beside, sync
from atoll.errors import RunError
from atoll.network.chain import (
    FORMAT,
    GENESIS,
    Head,
    Record,
    Verdict,
    chained,
    head,
    lines,
    stated,
    torn,
    verified,
    verify,
)
from atoll.network.disk import Hold, trouble

__all__ = ["NAME", "AuditLog", "Head", "Verdict", "head", "verify"]

NAME = "audit.jsonl"
"""What the file is called in a coordinator's directory."""

_SHOWN = 2000  # bytes of a torn line that are kept in the record of its cutting


@dataclass
class _Entry:
    body: bytes
    error: RunError | None = None
    done: bool = False


class AuditLog:
    """The log of one run, held for writing. Any thread may call `write`; those that come together share a sync.

    A last line that was torn by a kill or a power cut was told to nobody: it is cut off, and that is a record.

    Args:
        path: the file; begun where it is not there.
        run: the run's name; the log of another is refused.

    Raises RunError where another process has the log, it is of another run, its chain is broken, or it cannot be
    written.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        self._waiting: list[_Entry] = []
        self._queue, self._disk = threading.Lock(), threading.Lock()
        self._hold: Hold | None = Hold(path)
        self._file: int | None = None
        try:
            try:
                self._open(run)
            except OSError as error:
                raise trouble(path, error) from error
        except BaseException:
            self.close()
            raise

    def _open(self, run: str) -> None:
        if not self.path.exists():
            first, _ = chained(0, GENESIS, stated("begun", {"run": run, "format": FORMAT}))
            beside(self.path, first).replace(self.path)
            sync(self.path.parent)
        rest = torn(self.path)
        verdict = verified(self.path, None, torn_too=True)
        if not verdict.ok or verdict.head is None:
            raise RunError(
                f"{self.path}: {verdict.problem}",
                hint="keep it as evidence: move it elsewhere, and a new one is begun",
            )
        begun = next(lines(self.path))
        assert isinstance(begun, Record)
        if begun.event != "begun" or begun.facts.get("run") != run:
            raise RunError(
                f"{self.path} is of run {begun.facts.get('run')!r}, not {run!r}", hint="move it elsewhere"
            )
        if begun.facts.get("format") != FORMAT:
            raise RunError(
                f"{self.path} has format {begun.facts.get('format')}, and this release of atoll knows {FORMAT}",
                hint="install the release that wrote it",
            )
        self._head = verdict.head
        self._file = os.open(self.path, os.O_RDWR)
        self._end = self.path.stat().st_size - len(rest)
        if rest:
            text = rest[:_SHOWN].decode("utf-8", "replace")
            self.write("cut", octets=len(rest), text=text)  # over what it tells of
            os.ftruncate(self._file, self._end)

    @property
    def head(self) -> Head:
        """The last record that is on the disk."""
        return self._head

    def write(self, event: str, /, **facts: Any) -> None:
        """Add a record: it is on the disk when this returns. Facts are what JSON holds.

        Raises RunError where it cannot be written; it is not there then.
        """
        entry = _Entry(stated(event, facts))
        with self._queue:
            self._waiting.append(entry)
        with self._disk:  # whoever is first writes what all have asked for
            if not entry.done:
                with self._queue:
                    batch, self._waiting = self._waiting, []
                self._append(batch)
        if entry.error is not None:
            raise entry.error

    def close(self) -> None:
        """Let others have it; nothing can be written afterwards. A second call does nothing."""
        with self._disk:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            if self._hold is not None:
                self._hold.release()
                self._hold = None

    def _append(self, batch: list[_Entry]) -> None:
        error: RunError | None = None
        if self._file is None:
            error = RunError(f"{self.path} is closed", hint="start the coordinator again")
        else:
            end, whole = self._head, b""
            for entry in batch:
                added, sha256 = chained(end.seq + 1, end.hash, entry.body)
                end, whole = Head(end.seq + 1, sha256), whole + added
            problem = self._written(whole)
            if problem is None:
                self._head, self._end = end, self._end + len(whole)
            else:
                error = trouble(self.path, problem)
        for entry in batch:
            entry.error = None if error is None else RunError(error.message, hint=error.hint)
            entry.done = True

    def _written(self, content: bytes) -> OSError | None:
        assert self._file is not None
        try:
            at = 0
            while at < len(content):
                at += os.pwrite(self._file, content[at:], self._end + at)
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):  # else the next line is written over it
                os.ftruncate(self._file, self._end)
            return error
        return None
