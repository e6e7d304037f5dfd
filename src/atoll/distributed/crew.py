"""Worker processes: started, watched, ended, and started again.

They are forked, so that they need no import and share the data in memory, and each is a process group of its own: what
a terminal sends reaches the one who started them, who tells the first worker and waits for it to put the run away. None
outlives the process that started it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from itertools import count as counting
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import msgspec

from atoll import errors
from atoll.errors import AtollError, EngineError, RunError, Terminated

__all__ = ["Crew"]

_GRACE = 2.0  # seconds in which others may say what has befallen them, after the first has ended badly
_AWAY = 30.0  # seconds for the first worker to put the run away


class _Failure(msgspec.Struct):
    """How a worker ended, in its own words."""

    at: float
    kind: str
    message: str
    hint: str | None
    trace: str


class Crew:
    """So many processes that do one thing together.

    Args:
        count: how many.
        work: what each does, called with its number and how often they were started again.
        place: a directory of their own.
        spared: workers whose end by a signal is nobody's failure: the others go on as long as there are any, and one
            in its place is started where there are restarts left.
        called: what a worker is called.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[int, int], None],
        place: Path,
        spared: Callable[[int], bool] = lambda number: False,
        called: Callable[[int], str] | None = None,
    ) -> None:
        if not hasattr(os, "fork") or sys.platform == "darwin":
            raise EngineError(
                "this system cannot fork safely",
                hint="start the workers by torchrun: see docs/distributed.md",
            )
        self.count, self.work, self.place, self.spared = count, work, place, spared
        self.called = called or (lambda number: f"worker {number} of {count}")
        self._workers: list[Any] = []
        self._left = 0  # restarts

    def run(self, restarts: int = 0) -> None:
        """Until all are done; after a worker's end all are started again, `restarts` times at most.

        Raises what a worker raised if that is one of Atoll's errors, else RunError; KeyboardInterrupt and Terminated
        after the first worker has put the run away.
        """
        self._left = restarts
        for attempt in counting():
            failure = self._once(attempt)
            if failure is None:
                return
            known = self._known(failure)
            if not self._left or known.exit_code == 2:
                raise known
            self._left -= 1
            print(f"{known.message}; starting again ({restarts - self._left} of {restarts})", file=sys.stderr)

    def _once(self, attempt: int) -> tuple[int, int, _Failure | None] | None:
        """One start; how the first that ended badly did, if one has: its number, exit code and words."""
        context = get_context("fork")
        lifeline, held = context.Pipe(duplex=False)
        for number in range(self.count):
            self._file(number).unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()

        def process(number: int) -> Any:
            return context.Process(target=self._child, args=(number, attempt, lifeline, held), daemon=True)

        self._workers = [process(number) for number in range(self.count)]
        try:
            for each in self._workers:
                each.start()
            return self._watch(process)
        except (KeyboardInterrupt, Terminated) as error:
            self._put_away(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
            raise
        finally:
            self._end()
            lifeline.close()
            held.close()

    def _watch(self, process: Callable[[int], Any]) -> tuple[int, int, _Failure | None] | None:
        running = dict(enumerate(self._workers))
        while running:
            wait([each.sentinel for each in running.values()])
            ended = {number: each for number, each in running.items() if each.exitcode is not None}
            for number, each in ended.items():
                del running[number]
                if not each.exitcode:
                    continue
                if each.exitcode > 0 or not self.spared(number):
                    return self._blamed()
                how = f"{self.called(number)} was ended by {signal.Signals(-each.exitcode).name}"
                if self._left:
                    self._left -= 1
                    print(f"{how}; another takes its place", file=sys.stderr)
                    running[number] = self._workers[number] = process(number)
                    running[number].start()
                elif all(one.exitcode for n, one in enumerate(self._workers) if self.spared(n)):
                    return number, each.exitcode, None
                else:
                    print(f"{how}; the others go on", file=sys.stderr)
        return None

    def _blamed(self) -> tuple[int, int, _Failure | None]:
        """Who ended first: one that a signal ended, else who wrote down the earliest failure."""
        time.sleep(min(_GRACE, 0.2))
        deadline = time.monotonic() + _GRACE
        while time.monotonic() < deadline and any(each.exitcode is None for each in self._workers):
            time.sleep(0.02)
        bad = {number: each.exitcode for number, each in enumerate(self._workers) if each.exitcode}
        for number, code in bad.items():
            if code < 0 and not self.spared(number):
                return number, code, None
        told = {number: failure for number in bad if (failure := self._read(number)) is not None}
        if not told:
            number = min(bad)
            return number, bad[number], None
        first = min(told, key=lambda number: told[number].at)
        return first, bad[first], told[first]

    def _known(self, failure: tuple[int, int, _Failure | None]) -> AtollError:
        """A failure as an error."""
        number, code, words = failure
        who = self.called(number)
        if words is None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            hint = "was there memory enough? restarts=3 goes on from the last checkpoint"
            return RunError(f"{who} {how}", hint=hint)
        kind = getattr(errors, words.kind, None)
        if isinstance(kind, type) and issubclass(kind, AtollError) and kind is not errors.MissingExtraError:
            return kind(words.message, hint=words.hint)
        print(words.trace, file=sys.stderr, end="")
        return RunError(f"{who} failed: {words.kind}: {words.message}", hint=words.hint)

    def _put_away(self, number: signal.Signals) -> None:
        """Have the first worker write down what there is."""
        first = self._workers[0] if self._workers else None
        if first is not None and first.is_alive():
            os.kill(first.pid, number)
            first.join(_AWAY)

    def _end(self) -> None:
        for each in self._workers:
            if each.pid is not None and each.is_alive():
                each.kill()
        for each in self._workers:
            if each.pid is not None:
                each.join()

    def _file(self, number: int) -> Path:
        return self.place / f"failure-{number}.json"

    def _read(self, number: int) -> _Failure | None:
        try:
            return msgspec.json.decode(self._file(number).read_bytes(), type=_Failure)
        except (OSError, msgspec.MsgspecError):
            return None

    # --- in a worker ------------------------------------------------------------------------------------------

    def _child(self, number: int, attempt: int, lifeline: Connection, held: Connection) -> None:
        held.close()  # the pipe ends when the process that started this one does
        os.setpgid(0, 0)
        threading.Thread(target=_follow, args=(lifeline,), daemon=True).start()
        signal.signal(signal.SIGTERM, _terminate if number == 0 else signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler if number == 0 else signal.SIG_IGN)
        try:
            self.work(number, attempt)
        except (KeyboardInterrupt, Terminated):
            os._exit(0)
        except BaseException as error:
            known = error if isinstance(error, AtollError) else None
            failure = _Failure(
                time.time(),
                type(error).__name__,
                known.message if known else str(error),
                known.hint if known else None,
                "".join(traceback.format_exception(error)),
            )
            self._file(number).write_bytes(msgspec.json.encode(failure))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _terminate(*_: Any) -> None:
    raise Terminated


def _follow(lifeline: Connection) -> None:
    """End this process when the one that started it has ended."""
    wait([lifeline])
    os._exit(1)
