"""What a round was on the virtual clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Clocked"]


@dataclass(frozen=True)
class Clocked:
    """What a round was on the virtual clock, in virtual seconds since the run began.

    `spent` are client-seconds of all orders that ended in this round, `wasted` those whose replies were not used;
    `energy` joules of all of them. `late` came after the end, `failed` broke off. `staleness` is the mean over the
    replies used: how many steps the server had taken since the client was sent its model. `came` and `left` are those
    that came and left by the clock after the end of the round before, and up to the end of this one.
    """

    began: float
    ended: float
    spent: float = 0.0
    wasted: float = 0.0
    energy: float = 0.0
    staleness: float = 0.0
    late: Sequence[int] = ()
    failed: Sequence[int] = ()
    used: int = 0
    came: Sequence[int] = ()
    left: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in ("late", "failed", "came", "left"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
