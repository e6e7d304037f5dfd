"""How a failure is told: what happened, what to do, and the exit code."""

from __future__ import annotations

import traceback
from pathlib import Path

from atoll.errors import AtollError

__all__ = ["explain"]


def explain(error: BaseException) -> tuple[str, str | None, int]:
    """What to say about an error, what to advise, and the exit code."""
    if isinstance(error, AtollError):
        return error.message, error.hint, error.exit_code
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (in {Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    lines = str(error).strip().splitlines() or [""]
    return (
        f"{type(error).__name__}: {lines[0]:.300}{where}",
        "ATOLL_LOG_LEVEL=debug shows where it came from",
        1,
    )
