"""Send what somebody else sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atoll.attacks.lie import Lie, Seen
from atoll.spec import Parameter, whole

__all__ = ["Mimic"]


@dataclass(frozen=True)
class Mimic(Lie):
    """A copy of one honest client's update, whose data then count too much.   Karimireddy, He and Jaggi, ICLR 2022

    No rule can tell it from the truth. Of a round's honest clients the `which`-th is copied (or the last), from 1; the
    paper looks for the one that does most harm.
    """

    which: int = 1

    name: ClassVar[str] = "mimic"
    parameters: ClassVar[tuple[Parameter, ...]] = (whole("which", optional=True, at_least=1),)
    looks: ClassVar[bool] = True

    def sent(self, seen: Seen) -> Tensor:
        return seen.others[min(self.which, len(seen.others)) - 1].clone()
