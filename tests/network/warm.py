"""Processes of `atoll` that are forked from one which has imported what a new interpreter takes seconds for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Forked", "forked"]

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.network.faults.child"])


class Forked:
    """A process, as `subprocess.Popen` would give it."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        from tests.network.faults.child import run

        self._process = _FORKS.Process(target=run, args=tuple(arguments))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, sign: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sign)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> int:
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("atoll", seconds or 0.0)
        return code

    @property
    def rss(self) -> int:
        """Bytes of memory that it has in use."""
        with open(f"/proc/{self.pid}/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def peak(self) -> int:
        """The most that it ever had in use."""
        return 1024 * self.status("VmHWM")

    def status(self, name: str) -> int:
        """A number of the system's about it, such as "RssAnon", in kilobytes."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.split(f"{name}:")[1].split()[0])


def forked(words: Sequence[str], place: Path, log: Path, environment: Mapping[str, str]) -> Forked:
    """`atoll WORDS` in a directory, in this environment; what it says goes to the end of a file."""
    return Forked((list(words), str(place), str(log), [], {}, {}, dict(environment)))
