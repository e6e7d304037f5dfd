"""Gives events to readers without holding up the training thread."""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from atoll.errors import AtollError
from atoll.runs.events import Event
from atoll.runs.readers import Reader

__all__ = ["LIMIT", "Bus", "Problem"]

LIMIT = 100_000
"""Events that may wait for the readers."""

Problem = Callable[[str, str], None]

_PAUSE = 0.05  # seconds between looks at the queue while it is empty
_OPENING = 10.0  # seconds that `open` waits for the readers
_EXITING = 5.0  # seconds for the readers of a bus that nobody closed, when the interpreter ends


class Bus:
    """One thread and one queue between a run and its readers.

    A failure beside the training never becomes one of the training: a reader that raises is reported, closed and
    left out from then on. Where `limit` events are waiting, the readers do not keep up; all are left out then, since
    they share the thread that one of them holds up.

    Args:
        readers: who is told of the events, each in this order.
        problem: told (where, message) of what goes wrong, once for each reader. Called from the thread of the bus or
            from the one that sends or closes, never after `close`. What it raises is ignored. It may send events.
        limit: how many events may wait.
    """

    def __init__(self, readers: Iterable[Reader], *, problem: Problem, limit: int = LIMIT) -> None:
        self._readers = list(readers)
        self._problem = problem
        self._limit = limit
        self._waiting: deque[Event] = deque()
        self._thread: threading.Thread | None = None
        self._opened, self._closing = threading.Event(), threading.Event()
        self._taking = False  # events are accepted
        self._given_up = False  # the readers do not keep up: what waits is not read any more
        self._busy: Reader | None = None  # whom the thread is calling

    def open(self, folder: Path | None) -> None:
        """Open the readers, on the thread of the bus; wait until they are, or for ten seconds.

        Engines fork, and a fork while readers import packages would leave the child with import locks that nobody
        lets go of. Hence the wait.
        """
        if not self._readers:
            return
        self._taking = True
        self._thread = threading.Thread(target=self._work, args=(folder,), name="atoll-readers", daemon=True)
        self._thread.start()
        atexit.register(self._exit)
        self._opened.wait(_OPENING)

    def send(self, event: Event) -> None:
        """Pass an event on, which nobody may change from now on. About a microsecond; never raises or waits."""
        if not self._taking:
            return
        # Waking the other thread would take several microseconds, so it looks by itself.
        if len(self._waiting) < self._limit:
            self._waiting.append(event)
        else:
            self._overflow()

    def close(self, timeout: float = 30.0) -> None:
        """Let the readers finish what was sent, and close them; wait for it at most `timeout` seconds."""
        atexit.unregister(self._exit)
        self._taking = False
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._closing.set()
        thread.join(timeout)
        if thread.is_alive() and not self._given_up:
            self._given_up = True
            self._tell(
                _name(self._busy),
                f"still busy {timeout:g} s after the last event; {len(self._waiting):,} events were not read",
            )
        self._problem = _ignore

    # --- on the thread of the bus ---------------------------------------------------------------------------------

    def _work(self, folder: Path | None) -> None:
        for reader in self._readers:
            self._call(reader, reader.open, folder)
        self._opened.set()
        while self._readers and not self._given_up:
            if not self._waiting:
                if self._closing.wait(_PAUSE) and not self._waiting:
                    break
                continue
            event = self._waiting.popleft()
            for reader in self._readers:
                if not self._given_up:
                    self._call(reader, reader.event, event)
        self._taking = False
        for reader in self._readers:
            self._call(reader, reader.close)
        self._waiting.clear()  # lets go of events that nobody will read

    def _call(self, reader: Reader, method: Callable[..., object], *arguments: object) -> None:
        """Call a reader; one that fails is left out. Nothing it raises, SystemExit included, may end the thread."""
        self._busy = reader
        try:
            method(*arguments)
        except BaseException as error:
            # A new list, as the old one is being read.
            self._readers = [each for each in self._readers if each is not reader]
            if not self._given_up:
                self._tell(_name(reader), f"{_text(error)}; it gets no more events of this run")
            if method != reader.close:
                with contextlib.suppress(BaseException):
                    reader.close()
        self._busy = None

    # --- on any thread ----------------------------------------------------------------------------------------------

    def _overflow(self) -> None:
        late, self._taking, self._given_up = _name(self._busy), False, True
        others = ", ".join(name for each in self._readers if (name := _name(each)) != late)
        message = f"does not keep up: {self._limit:,} events are waiting; it gets no more events of this run"
        self._tell(late, f"{message}, nor does {others}" if others else message)

    def _tell(self, where: str, message: str) -> None:
        with contextlib.suppress(Exception):
            self._problem(where, message)

    def _exit(self) -> None:
        self.close(_EXITING)


def _name(reader: Reader | None) -> str:
    return "readers" if reader is None else reader.name or type(reader).__name__


def _text(error: BaseException) -> str:
    if isinstance(error, AtollError):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return f"{type(error).__name__}: {error}"


def _ignore(where: str, message: str) -> None:
    """Instead of a `problem` whose bus is closed."""
