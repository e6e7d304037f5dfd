"""Two ways to call the command: in this process, and as a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from tempfile import TemporaryFile
from typing import NamedTuple

import pytest

from atoll.cli import main
from tests.forked import fork

COMMAND = [sys.executable, "-c", "from atoll.cli import main; main()"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


Atoll = Callable[..., Result]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    return {**kept, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def atoll(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Atoll:
    """Calls the command in this process."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture
def process() -> Atoll:
    """Runs the command as a process."""

    def call(*arguments: str) -> Result:
        with TemporaryFile() as out, TemporaryFile() as err:
            number = fork(lambda: main(list(arguments)), out.fileno(), err.fileno(), environment())
            code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
            out.seek(0)
            err.seek(0)
            return Result(code, out.read().decode(), err.read().decode())

    return call
