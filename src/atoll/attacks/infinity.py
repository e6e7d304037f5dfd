"""Send numbers that are far too large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.attacks.lie import Lie, Seen
from atoll.spec import Parameter, number

__all__ = ["Infinity"]


@dataclass(frozen=True)
class Infinity(Lie):
    """One huge number everywhere; a mean does not survive it.   Blanchard et al., NeurIPS 2017, lemma 1

    What is not finite is refused before any rule sees it (`atoll.contract.screen`), so that the largest lie is a finite
    number; its square is none any more in single precision.
    """

    value: float = 1e30

    name: ClassVar[str] = "infinity"
    parameters: ClassVar[tuple[Parameter, ...]] = (number("value", optional=True),)

    def sent(self, seen: Seen) -> Tensor:
        return torch.full_like(seen.own, self.value)
