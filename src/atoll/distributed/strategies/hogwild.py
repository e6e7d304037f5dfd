"""Stochastic gradient descent without locks, on parameters in common memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from atoll.distributed.strategy import Free
from atoll.errors import ConfigError
from atoll.optimizers import Optimizer
from atoll.tensors import Tensors

__all__ = ["Hogwild"]


@dataclass(frozen=True)
class Hogwild(Free):
    """Workers of one machine step the same parameters in memory, nobody waits.   Recht et al., NeurIPS 2011

    each:  w <- w - lr (mean gradient of its own samples at w), while others write w

    An optimiser with a state would have it torn between workers, so it is plain SGD, with weight decay or without. A
    step of the settings is one of each worker.
    """

    name: ClassVar[str] = "hogwild"
    says: ClassVar[str] = "parameters in common memory, stepped by all workers without locks (plain SGD)"
    local: ClassVar[bool] = True

    def admit(self, optimizer: Optimizer, clip: float | None) -> None:
        if len(optimizer.init(Tensors(all=torch.zeros(1)))):
            raise ConfigError(
                "strategy = 'hogwild' is plain SGD, and this optimizer has a state",
                hint='set optimizer="sgd", or take ps:async',
            )
