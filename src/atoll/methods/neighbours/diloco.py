"""DiLoCo without a server: an outer optimiser at every peer, and neighbours that average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.methods.neighbours.dpsgd import DPSGD
from atoll.methods.parts.settings import require
from atoll.tensors import Record

__all__ = ["DiLoCo"]


@dataclass(frozen=True, kw_only=True)
class DiLoCo(DPSGD):
    """Take an outer step with momentum, then average with the neighbours.   Douillard et al. 2023 (DiLoCo)

    client:  z_k as in D-PSGD, many steps of an inner optimiser;  d_k = x_k - z_k
    mixing:  m_i <- outer_momentum m_i + d_i
             x_i <- sum_j W_ij (x_j - outer_lr (d_j + outer_momentum m_j))

    Every peer has an outer Nesterov momentum of its own, and models alone are sent. On the complete graph the peers'
    mean moves as DiLoCo's model does, since steps and means are linear in all d; elsewhere neighbours stand for the
    all-reduce. With outer_lr = 1 and no momentum this is D-PSGD.

    Args:
        outer_lr: step size of the outer optimiser.
        outer_momentum: its momentum, 0 to below 1.
    """

    outer_lr: float = 0.7
    outer_momentum: float = 0.9

    plain: ClassVar[bool] = True
    paper: ClassVar[str] = "Douillard et al. 2023 (DiLoCo), by neighbours"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "outer_lr", self.outer_lr > 0, "must be above 0")
        require(self, "outer_momentum", 0 <= self.outer_momentum < 1, "must be in [0, 1)")

    def outset(self, model: Tensor) -> Record:
        return Record(momentum=torch.zeros_like(model))

    def _step(self, own: Record, trained: Record) -> tuple[Tensor, Tensor]:
        """The model after the outer step, and the momentum."""
        change = own.model - trained.model
        momentum = own.momentum * self.outer_momentum + change
        return own.model - (momentum * self.outer_momentum + change) * self.outer_lr, momentum

    def offer(self, own: Record, trained: Record) -> Record:
        return Record(model=self._step(own, trained)[0], buffers=trained.buffers)

    def settle(self, own: Record, trained: Record, offered: Record, mixed: Record) -> Record:
        return Record(model=mixed.model, buffers=mixed.buffers, momentum=self._step(own, trained)[1])
