"""Gradient tracking: peers correct their steps by how their gradients differ from those of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.contract import ClientData
from atoll.methods.neighbours.decentralised import Decentralised
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["Tracking"]


@dataclass(frozen=True, kw_only=True)
class Tracking(Decentralised):
    """Follow the gradient of all, not one's own.   Liu et al. 2024 (K-GT); Nedic, Olshevsky, Shi 2017

    client:  z_k <- x_k;  K times  z_k <- z_k - lr (grad F_k(z_k; batch) + c_k);   y_k = (x_k - z_k) / (K lr)
    mixing:  x_i <- sum_j W_ij z_j;   c_i <- c_i - y_i + sum_j W_ij y_j

    With one step of all data this is y_i <- sum_j W_ij y_j + g_i' - g_i, gradient tracking. The sum of all c stays 0,
    and where nothing moves any more every y is 0: the sum of all gradients is, whatever the peers' data. (D-PSGD stops
    where gradients and mixing pull alike.)

    Traps: K is the number of steps that a peer has really taken. y is a mean of gradients for plain SGD only.
    """

    paper: ClassVar[str] = "Liu et al. 2024 (K-GT); Nedic et al. 2017"
    cost: ClassVar[str] = "2 models to each neighbour"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "optimizer", self.optimizer == "sgd", "must be sgd")
        require(self, "momentum", self.momentum == 0, "must be 0")
        require(self, "clip", self.clip == 0, "must be 0")

    def outset(self, model: Tensor) -> Record:
        return Record(correction=torch.zeros_like(model))

    def told(self, own: Record) -> Record:
        return Record(correction=own.correction)

    def offer(self, own: Record, trained: Record) -> Record:
        pace = trained.steps.clamp(min=1) * trained.lr
        return Record(
            model=trained.model, direction=(own.model - trained.model) / pace, buffers=trained.buffers
        )

    def settle(self, own: Record, trained: Record, offered: Record, mixed: Record) -> Record:
        correction = own.correction - offered.direction + mixed.direction
        return Record(model=mixed.model, buffers=mixed.buffers, correction=correction)

    # ---- client half -------------------------------------------------------------------------------------

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return super().begin(task, received, memory, data).replace(correction=received.correction)

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        gradient, local = super().gradient(task, local, batch)
        return gradient + local.correction, local
