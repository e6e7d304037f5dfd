"""Writes a run down as it happens: events to the file and to the readers, checkpoints, and the files at the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from atoll.errors import AtollError
from atoll.runs import report
from atoll.runs.bus import Bus
from atoll.runs.csvs import clients_csv
from atoll.runs.events import Event, encode, kinds, plain
from atoll.runs.folder import RunFolder, writing
from atoll.runs.readers import Reader

__all__ = ["Recorder"]

log = logging.getLogger("atoll.run")


class Recorder:
    """One run's events.

    Args:
        folder: where they are kept, held by this process; None keeps nothing on disk.
        readers: what else is told of them, off the training thread.

    The events of a run without a folder, its rounds aside, are in `kept`.
    """

    def __init__(self, folder: RunFolder | None, readers: Sequence[Reader]) -> None:
        self.folder = folder
        self.kept: list[Event] = []
        self._file: int | None = None
        self._bus = Bus(readers, problem=self.problem) if readers else None

    def open(self) -> None:
        """Before the first event.  Raises RunError where the folder cannot be written."""
        if self.folder is not None:
            path = self.folder.events_file
            with writing(path, "events"):
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                if _cut_off(path):
                    os.write(
                        self._file, b"\n"
                    )  # what was being written when the run was cut off: a damaged line
        if self._bus is not None:
            self._bus.open(self.folder.path if self.folder is not None else None)

    def emit(self, event: kinds.Written) -> None:
        """Write an event, and pass it on to the readers.  Raises RunError where it cannot be written."""
        if self._file is not None and self.folder is not None:
            line = encode(event)
            with writing(self.folder.events_file, "events"):
                while line:
                    line = line[os.write(self._file, line) :]
        elif not isinstance(event, (kinds.Round, kinds.Begin)):
            self.kept.append(plain(event))
        if self._bus is not None:
            self._bus.send(plain(event))

    @property
    def heard(self) -> bool:
        """Whether rounds are written to a file or told to a reader."""
        return self._file is not None or self._bus is not None

    def recall(self) -> None:
        """Tell the readers again how the run began, so that they know what goes on."""
        known = self.folder.log().events if self.folder is not None else self.kept
        for found in known:
            if found["event"] in ("start", "partition") and self._bus is not None:
                self._bus.send(found)

    def problem(self, where: str, message: str) -> None:
        """Something beside the training failed: say so, and go on. Called from any thread; never raises."""
        log.warning("%s: %s", where, message)
        try:
            found = kinds.Problem(where=where, message=message)
            if self._file is not None:
                os.write(self._file, encode(found))
            else:
                self.kept.append(plain(found))
        except OSError as error:
            log.warning("cannot write events: %s", error)

    def attempt(self, where: str, action: Callable[[], object]) -> None:
        """Do something that the run can do without; a failure is a problem."""
        try:
            action()
        except AtollError as error:
            self.problem(where, error.message)
        except Exception as error:
            self.problem(where, f"{type(error).__name__}: {error}")

    def export(self) -> None:
        """Write the files that are made from the events: clients.csv and report.html."""
        if self.folder is not None:
            folder, events = self.folder, self.folder.log().events
            self.attempt("clients.csv", lambda: _write_clients(folder, events))
            self.attempt("report.html", lambda: _write_report(folder, events))

    def close(self) -> None:
        """Let the readers finish, and let go of the folder."""
        if self._bus is not None:
            self._bus.close()
            self._bus = None
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self.folder is not None:
            self.folder.release()


def _cut_off(path: Path) -> bool:
    """Whether the last line of a file lacks its end."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _write_clients(folder: RunFolder, events: list[Event]) -> None:
    folder.write("clients.csv", clients_csv(events).encode())


def _write_report(folder: RunFolder, events: list[Event]) -> None:
    report.write(folder.path / "report.html", folder.name, [events], audits=[folder.audit()])
