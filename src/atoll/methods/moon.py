"""Contrast between models: features like the received model's, unlike those of the client's last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from atoll.contract import ClientData, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.features import features, gradient_with
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["Moon"]


@dataclass(frozen=True, kw_only=True)
class Moon(FedAvg):
    """Correct local training by contrasting features.   Li, He, Song, CVPR 2021, Algorithm 1

    client:  w_k <- w_t;  w_k <- w_k - lr grad (F_k + mu l)(w_k; batch),
             l = mean over the batch of -log(e^{s_t / tau} / (e^{s_t / tau} + e^{s_p / tau})),
             s_t = cos(z, z_t), s_p = cos(z, z_p): z the features of w_k, z_t of w_t as received, z_p of the
             model w_p with which the client ended its last round
    server:  as FedAvg

    Features are what the last layer with parameters reads. The paper puts a projection head of two layers before
    it, which is a matter of the model. With mu = 0, and in a client's first round, where w_p is taken to be w_t
    and l is constant, this is FedAvg.

    Args:
        mu: weight of the contrast; the authors choose among 0.1, 1, 5 and 10.
        tau: temperature; smaller is sharper.

    Traps: the gradient flows through z only. w_t is the model as received, not an alias of the one in training.
    w_t and w_p are run in evaluation mode, so that neither dropout nor batch statistics blur them.
    """

    mu: float = 1.0
    tau: float = 0.5

    paper: ClassVar[str] = "Li et al. 2021 (MOON), Algorithm 1"
    cost: ClassVar[str] = "1 model up, 1 down; 1 remembered; 2 more forward passes a step"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "mu", self.mu >= 0, "must not be negative")
        require(self, "tau", self.tau > 0, "must be above 0")

    def remember(self, task: Task, received: Record) -> Record:
        return Record(params=received.params, buffers=received.buffers)

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        if not self.mu:
            return super().gradient(task, local, batch)
        towards, away = (
            features(task, model.params, model.buffers, batch.inputs)
            for model in (local.received, local.memory)
        )

        def contrasted(loss: Tensor, z: Tensor) -> Tensor:
            margin = (cosine(z, away) - cosine(z, towards)) / self.tau
            contrast = torch.sum(F.softplus(margin) * batch.mask) / batch.mask.sum().clamp(min=1)
            return loss + self.mu * contrast

        gradient, loss, buffers = gradient_with(task, local.params, local.buffers, batch, contrasted)
        return gradient, self.tallied(local, batch, loss, buffers)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        return super().finish(task, local, data)[0], Record(params=local.params, buffers=local.buffers)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of the angle between rows; 0 where a row is zero."""
    norms = one.square().sum(1).clamp(min=1e-12).sqrt() * other.square().sum(1).clamp(min=1e-12).sqrt()
    return (one * other).sum(1) / norms
