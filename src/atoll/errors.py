"""Errors a person can act on. Each carries an exit code and, where one is known, a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AtollError",
    "BudgetError",
    "CodecError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "EngineError",
    "MissingExtraError",
    "PausedError",
    "RunError",
    "Terminated",
]


class AtollError(Exception):
    """Base of every error Atoll raises on purpose.

    `message` says what is wrong and where; `hint` says what to do about it; `exit_code` is what the
    command line ends with.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class RunError(AtollError):
    """A run failed while it was training."""


class EngineError(RunError):
    """An engine cannot run this work (another engine may)."""


class ConfigError(AtollError, ValueError):
    """A setting is wrong: an unknown name, a value outside its range, two settings that exclude each other."""

    exit_code = 2


class DataError(AtollError, ValueError):
    """Data cannot be read, or cannot be divided or used as asked."""

    exit_code = 2


class CodecError(AtollError, ValueError):
    """Bytes are no record, or not of the form that is expected; or a record holds what cannot be written."""

    exit_code = 2


class MissingExtraError(AtollError, ImportError):
    """An optional dependency is needed and not installed."""

    exit_code = 3

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed", hint=f'pip install "atoll[{extra}]"'
        )


class PausedError(RunError):
    """A run cannot go on for now: nobody is there, or too few answer. What it has is kept, and it may be resumed."""

    exit_code = 5


class BudgetError(RunError):
    """A release would cost more privacy than was granted, or a ledger of privacy cannot be written or trusted."""

    exit_code = 2


class DivergedError(RunError):
    """The model left the finite numbers. The last finite model is kept."""

    exit_code = 6


class Terminated(BaseException):
    """SIGTERM came; like KeyboardInterrupt, it is nobody's error."""


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known words, or all of them where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.55)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "known: " + ", ".join(names)
