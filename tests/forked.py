"""A program in a copy of this process, which has imported already what a new interpreter takes seconds for."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from queue import SimpleQueue
from typing import IO

__all__ = ["Forked", "fork"]


def fork(program: Callable[[], object], out: int, error: int, environment: Mapping[str, str]) -> int:
    """Start `program` with these descriptors as its output and this environment: the process's id.

    It ends as an interpreter ends: with 0, with what `sys.exit` was given, or with 1 and a traceback.

    It is forked by a thread of its own, which stays. OpenMP's threads belong to the one that has used them, and its
    copy would wait for them in vain; and with the thread that forked a process, those end that asked to end with their
    parent.
    """
    found: SimpleQueue[int] = SimpleQueue()
    _asked(os.getpid()).put(lambda: found.put(_forked(program, out, error, environment)))
    return found.get()


@cache
def _asked(process: int) -> SimpleQueue[Callable[[], object]]:
    """What the thread is to do that forks for this process. (A copy of the process has no copy of the thread.)"""
    asked: SimpleQueue[Callable[[], object]] = SimpleQueue()

    def serve() -> None:
        while True:
            asked.get()()

    threading.Thread(target=serve, daemon=True, name="forks").start()
    return asked


def _forked(program: Callable[[], object], out: int, error: int, environment: Mapping[str, str]) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(error, 2)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - to the end
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        program()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Forked:
    """`python -P -m atoll.cli WORDS` as `subprocess.Popen` would start it, forked from this process."""

    def __init__(
        self,
        command: Sequence[str],
        stdin: int,
        stdout: IO[bytes],
        stderr: int,
        pass_fds: Sequence[int],
        env: Mapping[str, str],
        start_new_session: bool,
    ) -> None:
        from atoll.cli import main

        assert list(command[1:4]) == ["-P", "-m", "atoll.cli"] and start_new_session
        self.returncode: int | None = None

        def play() -> None:
            os.setsid()
            for number in map(int, os.listdir("/proc/self/fd")):
                if number > 2 and number not in pass_fds:
                    with contextlib.suppress(OSError):
                        os.close(number)
            main(list(command[4:]))

        self.pid = fork(play, stdout.fileno(), stdout.fileno(), env)

    def poll(self) -> int | None:
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def send_signal(self, sign: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sign)
