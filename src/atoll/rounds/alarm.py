"""What a person should hear of while a run goes on, though nothing failed."""

from __future__ import annotations

from atoll.rounds.history import Round

__all__ = ["Alarm"]

_ROUNDS = 10


class Alarm:
    """Notices a global model that gives one class to everybody, evaluation after evaluation, for ten rounds."""

    def __init__(self) -> None:
        self._since: int | None = None
        self._told = False

    def notice(self, record: Round) -> str | None:
        """What to say after this round; None mostly, and the same thing once."""
        if record.evaluation is None or self._told:
            return None
        only = record.evaluation.only
        if (
            only is None or record.evaluation.personal
        ):  # clients with models of their own do not use the global one
            self._since = None
            return None
        self._since = record.number if self._since is None else self._since
        if record.number - self._since + 1 < _ROUNDS:
            return None
        self._told = True
        return (
            f"from round {self._since} to {record.number} the global model has predicted one class for every test"
            f" sample (now {only}). Look at the inputs first: columns in raw units hide each other until they are"
            " scaled by constants (scale), then at the learning rate (lr) and at how rare the other classes are"
        )
