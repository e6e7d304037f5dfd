"""What can go wrong in secure aggregation, by whose decision."""

from __future__ import annotations

from atoll.errors import PausedError, RunError

__all__ = ["AbortedError", "OutOfTurnError", "RefusedError", "RejectedError", "SpentError"]


class RefusedError(RunError):
    """A client takes no further part: what it was sent breaks the protocol or a floor of its own."""


class SpentError(RefusedError):
    """A client's update of this round may be in a sum already, and will not go into another one."""


class OutOfTurnError(RefusedError):
    """A client was sent what is not due: a repeat, something early or late, or of another attempt. Nothing changed."""


class RejectedError(RunError):
    """The server does not take a client's message. Nothing has changed; the client counts as silent so far."""


class AbortedError(PausedError):
    """An attempt ended without a sum, and nothing was learnt. Another attempt has another sid and new keys.

    `stage` is where it ended: keys, shares, masked, consistency or unmask.
    """

    def __init__(self, stage: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"secure aggregation ended at stage {stage!r}: {reason}", hint=hint)
        self.stage = stage
        self.reason = reason
