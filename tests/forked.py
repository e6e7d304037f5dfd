"""A program in a copy of this process, which has imported already what a new interpreter takes seconds for."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping

__all__ = ["fork"]


def fork(program: Callable[[], object], out: int, error: int, environment: Mapping[str, str]) -> int:
    """Start `program` with these descriptors as its output and this environment: the process's id.

    It ends as an interpreter ends: with 0, with what `sys.exit` was given, or with 1 and a traceback.
    """
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
