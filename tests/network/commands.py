"""Commands, in this process."""

from __future__ import annotations

import contextlib
import io

from atoll.cli.main import main


def command(*words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `atoll WORDS`."""
    out, errors = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main(list(words))
        except SystemExit as end:
            code = end.code
    return int(str(code or 0)), out.getvalue(), errors.getvalue()
