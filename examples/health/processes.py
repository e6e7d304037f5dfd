"""An authority, a coordinator and nodes, each a process with keys of its own, on this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import atoll

PATIENCE = 300.0
"""Seconds to wait for a process to say something."""


class Processes:
    """What was started here, with a file for the output of each; all ends with the block."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        with (self.place / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "atoll.cli", *arguments]
            self.running[name] = subprocess.Popen(
                command, cwd=self.place, stdout=log, stderr=log, env=environment
            )

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text()

    def until(self, name: str, text: str) -> None:
        """Wait until a process has said something (a regular expression).  Raises RunError where it ends before."""
        end = time.monotonic() + PATIENCE
        while not re.search(text, self.log(name)):
            if self.running[name].poll() not in (None, 0) or time.monotonic() > end:
                raise atoll.RunError(f"{name} has not said {text!r}:\n{self.log(name)}")
            time.sleep(0.1)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
            process.wait()


def command(place: Path, *arguments: str) -> str:
    """What a command prints that ends by itself.  Raises RunError where it fails."""
    found = subprocess.run(
        [sys.executable, "-m", "atoll.cli", *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise atoll.RunError(found.stderr)
    return found.stdout


def port() -> int:
    """One that is free."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Network:
    """A coordinator and a node for each name, over TLS; each node has the file NAME.npz in `place`."""

    def __init__(self, processes: Processes, serve: tuple[str, ...], names: tuple[str, ...]) -> None:
        self.processes, self.where = processes, f"127.0.0.1:{port()}"
        place = processes.place
        command(place, "ca", "init")
        self.serve = ("serve", *serve, "--port", self.where.rpartition(":")[2])
        self.begin()
        for name in names:
            words = command(place, "ca", "invite", name).split()
            token = next(word for word in words if word.startswith("atoll1."))
            self.join(name, "--invitation", token)
        for name in names:
            processes.until(name, "joined as")

    def begin(self) -> None:
        """The coordinator; again, where it was killed."""
        self.processes.start("coordinator", *self.serve)
        self.processes.until("coordinator", "listening")

    def join(self, name: str, *invitation: str) -> None:
        """A node; without an invitation one that has its keys already."""
        self.processes.start(
            name, "join", self.where, "--data", f"{name}.npz", "--name", name, "--place", name, "--approve", *invitation
        )  # fmt: skip
