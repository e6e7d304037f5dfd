"""Hooks around a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.federation import Federation
    from atoll.results import Run
    from atoll.rounds.history import Round

__all__ = ["Callback", "Hooks"]


class Callback:
    """Hooks around a run. Override what you need.

    They run between the rounds, so their time is the run's. A callback that raises is reported, as a problem in the
    events and a warning in the log, and is not called again; the run goes on. `federation.stop()` ends it early.
    """

    def on_start(self, federation: Federation) -> None:
        """Before the first round."""

    def on_round_start(self, federation: Federation, number: int) -> None:
        """Before a round's cohort is sampled."""

    def on_round_end(self, federation: Federation, record: Round) -> None:
        """After a round was committed (and evaluated, if it was its turn)."""

    def on_end(self, federation: Federation, run: Run) -> None:
        """After the last round."""


class Hooks:
    """Calls callbacks; one that fails is reported to `problem(where, message)`, and is not called again."""

    def __init__(self, callbacks: Iterable[Callback], problem: Callable[[str, str], object]) -> None:
        self.callbacks = list(callbacks)
        self._problem = problem

    def call(self, hook: str, *arguments: Any) -> None:
        """Call this hook of all."""
        for callback in list(self.callbacks):
            try:
                getattr(callback, hook)(*arguments)
            except Exception as error:
                self.callbacks.remove(callback)
                where = f"callback {type(callback).__name__}.{hook}"
                self._problem(where, f"{type(error).__name__}: {error}; it is not called again")
