"""What a process of a fault test runs: the command line, after faults have been planted in it.

The processes are forked from one that has imported everything, so that a start takes a moment and not seconds.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import atoll.cli.join
import atoll.cli.serve
import atoll.federation
import atoll.network.here  # noqa: F401 - imported before the fork
from atoll.cli.main import main
from atoll.network import hand, worker
from tests.forked import fork

_NOW = time.time


def shifted(seconds: float) -> float:
    """What a clock says that goes wrong by so much."""
    return _NOW() + seconds


@dataclass(frozen=True)
class Wound:
    """A fault at a function, "module:Class.method": before or after its n-th call something happens.

    `what` is "kill" (SIGKILL of this process), "kill:SECONDS" (so much later), an errno as text (the call raises
    that OSError instead, from the n-th to the `last` call), or "sleep:SECONDS".
    """

    target: str
    what: str = "kill"
    call: int = 1
    after: bool = False
    last: int | None = None


def planted(wound: Wound) -> None:
    """Put a fault in its place."""
    module, _, path = wound.target.partition(":")
    *owners, name = path.split(".")
    holder: Any = importlib.import_module(module)
    for owner in owners:
        holder = getattr(holder, owner)
    inner: Callable[..., Any] = getattr(holder, name)
    calls = 0

    def wounded(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        hit = calls == wound.call or (wound.last is not None and wound.call <= calls <= wound.last)
        if not hit:
            return inner(*arguments, **more)
        found = inner(*arguments, **more) if wound.after else None
        if wound.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif wound.what.startswith("kill:"):
            later = float(wound.what.partition(":")[2])
            threading.Timer(later, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif wound.what.startswith("sleep:"):
            time.sleep(float(wound.what.partition(":")[2]))
        else:
            raise OSError(int(wound.what), os.strerror(int(wound.what)))
        return found if wound.after else inner(*arguments, **more)

    static = isinstance(holder.__dict__.get(name), staticmethod) if isinstance(holder, type) else False
    setattr(holder, name, staticmethod(wounded) if static else wounded)


class Worker:
    """A node's worker as `subprocess.Popen` would give it, forked from the node, which has imported what it needs."""

    def __init__(
        self, command: list[str], pass_fds: tuple[int, int], stdin: int, stdout: int, env: Mapping[str, str]
    ) -> None:
        assert command[1:3] == ["-m", "atoll.network.worker"] and stdin == subprocess.DEVNULL
        self.returncode: int | None = None

        def work() -> None:
            for sign in (signal.SIGINT, signal.SIGTERM):
                signal.signal(sign, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            first = 3
            for kept in sorted(pass_fds):  # no pipe of the node's stays open here
                os.closerange(first, kept)
                first = kept + 1
            os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            worker.main(*map(int, command[3:]))

        self.pid = fork(work, stdout, 2, env)

    def poll(self) -> int | None:
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def run(
    arguments: list[str],
    cwd: str,
    log: str,
    wounds: list[Wound],
    values: Mapping[str, Any],
    limits: Mapping[str, int],
    environment: Mapping[str, str],
) -> None:
    """Be `atoll ARGUMENTS`. `values` are module constants ("module:NAME"), `limits` rlimits by name."""
    sink = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update({"OMP_NUM_THREADS": "1", "COLUMNS": "200", "CI": "1", **environment})
    sys.path[:0] = environment.get("PYTHONPATH", "").split(":")
    os.chdir(cwd)
    hand.subprocess = SimpleNamespace(Popen=Worker, DEVNULL=subprocess.DEVNULL)  # type: ignore[assignment]
    for place, value in values.items():
        module, _, name = place.partition(":")
        setattr(importlib.import_module(module), name, value)
    for wound in wounds:
        planted(wound)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    main(arguments)
