"""What a person at a terminal sees, through a real pseudo-terminal."""

from __future__ import annotations

import logging
import os
import re
import sys

import pytest

from atoll.cli import main
from tests.forked import fork

from .conftest import environment

pty = pytest.importorskip("pty", reason="pseudo-terminals are for POSIX systems")

SHORT = ("--set", "rounds=2", "--set", "engine=loop", "--set", "clients=5", "--set", "model=logistic")
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7])[0-9;]*m")
CURSOR = "\x1b[?25l"


def watch(*further: str, **variables: str) -> str:
    """What appears on a terminal that runs a short `atoll run`."""
    env = {name: value for name, value in environment().items() if name not in ("CI", "NO_COLOR")}
    ours, theirs = pty.openpty()
    env |= {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40", **variables}

    def run() -> None:
        logging.getLogger().handlers.clear()  # pytest's would keep warnings to themselves
        main(["run", *SHORT, *further])

    running = fork(run, theirs, theirs, env)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert os.waitstatus_to_exitcode(os.waitpid(running, 0)[1]) == 0
    return seen.decode(errors="replace")


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are for POSIX systems")
class TestTerminal:
    def test_a_live_table_and_then_the_summary(self) -> None:
        seen = watch()
        assert CURSOR in seen
        assert COLOUR.search(seen)
        assert "2/2" in seen
        assert "client mean" in seen

    def test_no_color(self) -> None:
        seen = watch(NO_COLOR="1")
        assert CURSOR in seen
        assert not COLOUR.search(seen)

    def test_lines_in_ci(self) -> None:
        seen = watch(CI="true")
        assert CURSOR not in seen
        assert "round 2/2" in seen

    def test_a_warning_has_a_line_of_its_own(self) -> None:
        seen = watch(*(f"--set={each}" for each in ("method=heterofl", "rates=1,0.5", "model=mlp:8")))
        assert seen.count("training may diverge") == 1
        before = seen[: seen.index("WARNING")].replace("\r\x1b[2K", "\n")
        assert before.endswith("\n")
