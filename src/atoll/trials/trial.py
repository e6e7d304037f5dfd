"""One point of a sweep and its run: the process that plays it, and how far it has come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from atoll.measures import Figures
from atoll.runs.events import follow
from atoll.runs.folder import RunFolder
from atoll.runs.story import Story
from atoll.trials.points import Point

try:
    import fcntl
except ImportError:  # pragma: no cover - not on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["Trial"]


class Trial:
    """A point, its run folder (None before it has one) and the process that plays it, if one does.

    `round` of `rounds` was the last one played, `score` the figure to look at `first` then, `seconds` those of the
    rounds without evaluations. `message` says what went wrong.
    """

    def __init__(self, point: Point, place: Path) -> None:
        self.point = point
        self.place = place
        self.folder: RunFolder | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.elsewhere = False  # whether a process that is not this sweep's plays it
        self.stopped = False  # by the sweep, which ends
        self.message = ""
        self.hint: str | None = None
        self._forget()

    def _forget(self) -> None:
        self.round, self.rounds = 0, self.point.experiment.rounds
        self.measure = "accuracy"
        self.first = "accuracy"
        self.score: float | None = None
        self.times: dict[int, float] = {}
        self.ended: dict[str, Any] | None = None
        self.checkpoint = False
        self._start = Story([])
        self._read = 0

    # --- its state --------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """ "waiting", "running", "finished", "failed" or "stopped" (to be gone on with)."""
        if self.process is not None or self.elsewhere:
            return "running"
        if self.finished:
            return "finished"
        if self.message:
            return "failed"
        return "waiting" if self.folder is None else "stopped"

    @property
    def finished(self) -> bool:
        """Whether its run came to its end."""
        return self.ended is not None and self.ended["event"] == "result"

    @property
    def seconds(self) -> float:
        """How long the rounds took, without evaluations."""
        return sum(self.times.values())

    @property
    def hopeless(self) -> bool:
        """Whether going on would fail in the same way: it diverged."""
        return self.ended is not None and self.ended.get("kind") == "DivergedError"

    def look(self) -> None:
        """Read what has been added to the events."""
        if self.folder is None:
            return
        try:
            for event, end in follow(self.folder.events_file, self._read):
                self._read = end
                if event is not None:
                    self._take(event)
        except OSError:  # not there yet, or no longer
            return

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "start":
            self._start = Story([event])
            self.measure = self._start.measure
        elif kind == "round":
            self.round = event.get("round") or self.round
            self.times[self.round] = event.get("seconds") or 0.0
            if event.get("evaluation"):
                self.first = Figures(event["evaluation"], self.measure).first
                self.score = self._start.value(event["evaluation"], self.first)
        elif kind == "resume":
            self.round, self.ended = event.get("round") or 0, None
            self.times = {number: time for number, time in self.times.items() if number <= self.round}
        elif kind == "checkpoint":
            self.checkpoint = True
        elif kind in ("result", "error"):
            self.ended = event

    # --- its process ------------------------------------------------------------------------------------------

    def claimed(self) -> IO[bytes] | None:
        """The point's lock, to be closed or passed on; None (and `elsewhere`) where another process plays it.

        The process that plays a point inherits its lock, and so keeps it even if the sweep itself is killed.
        """
        handle = open(self._file("lock"), "ab")  # noqa: SIM115 - closing it lets go of the lock
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.elsewhere = self.folder is not None and self.folder.held()
        except OSError:
            self.elsewhere = True
        if not self.elsewhere:
            return handle
        handle.close()
        return None

    def start(self, lock: IO[bytes], threads: int) -> None:
        """Begin the run, or go on with it, in a process of its own with so many threads."""
        if self.folder is not None and not self.checkpoint:
            self.folder.remove()  # it was cut off before anything was kept
            self.folder = None
            self._forget()
        if self.folder is None:
            which = ["run", str(self._file("toml")), "--runs", str(self.place)]
        else:
            which = ["run", "--resume", str(self.folder.path)]
        self.message, self.hint, self.ended = "", None, None
        self._file("toml").write_text(self.point.experiment.to_toml(), "utf-8")
        inherited = [lock.fileno()] if fcntl is not None else []
        with lock, open(self._file("txt"), "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "atoll.cli", *which, "--quiet"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=inherited,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,  # Ctrl-C comes to the sweep alone, which passes it on
            )  # fmt: skip

    def reap(self) -> bool:
        """Whether the process has just ended; what it left is known then."""
        if self.process is None or (code := self.process.poll()) is None:
            return False
        self.process = None
        self.look()
        if not self.finished and not self.stopped:
            self._explain(code)
        return True

    def stop(self, number: int) -> None:
        """Send the process a signal; with SIGKILL, its own processes too."""
        self.stopped = True
        if self.process is not None and self.process.poll() is None:
            try:
                if number == signal.SIGKILL:
                    os.killpg(self.process.pid, number)
                else:
                    self.process.send_signal(number)
            except ProcessLookupError:  # it was faster
                pass

    def _explain(self, code: int) -> None:
        """Why the run failed: its own words, or the last ones that its process printed."""
        if self.ended is not None:
            self.message, self.hint = str(self.ended.get("message")), self.ended.get("hint")
            return
        text = self._file("txt").read_text("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.message = said[-1] if said else f"its process ended with {how}"
        self.hint = f"what it printed is in {self._file('txt')}"

    def _file(self, ending: str) -> Path:
        return self.place / "points" / f"{self.point.name}.{ending}"
