"""Personal models by Moreau envelopes: near the shared one, as near as the pull makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from atoll.contract import ClientData, Model, Replies, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.buffers import averaged
from atoll.methods.parts.settings import require
from atoll.optimizers import clip_by_norm
from atoll.task import Batch, Task
from atoll.tensors import Record

__all__ = ["PFedMe"]


@dataclass(frozen=True, kw_only=True)
class PFedMe(FedAvg):
    """Descend the Moreau envelopes of the clients.   T. Dinh, Tran, Nguyen, NeurIPS 2020, Algorithm 1

    client:  w_k <- w_t, theta_k <- w_t;  for each batch
             K times  theta_k <- theta_k - inner_lr (grad F_k(theta_k; batch) + lam (theta_k - w_k))
             w_k <- w_k - lr lam (w_k - theta_k)
    server:  w_{t+1} = w_t + beta mean_S (w_k - w_t)

    Clients count equally, whatever their data. A client predicts with theta_k, and with the global model before
    it has taken part. theta_k goes on from batch to batch within a round. The solver's settings (momentum,
    clip, ...) are those of theta_k.

    Args:
        lr: step of the client's copy of the shared model, eta in the paper.
        lam: strength of the pull, lambda in the paper; each step takes w_k the part lr * lam of the way to
            theta_k.
        inner_steps: K, how many steps theta_k takes a batch.
        inner_lr: their size; it knows no schedule.
        beta: how far the server goes toward the mean of the w_k; above 1 it goes beyond.

    Traps: with beta = 0, a default elsewhere, the global model never moves. The pull of theta_k is toward w_k as it
    is now, not toward w_t. What is averaged are the w_k, not the theta_k.
    """

    lr: float = 0.005
    lam: float = 15.0
    inner_steps: int = 5
    inner_lr: float = 0.01
    beta: float = 1.0

    paper: ClassVar[str] = "T. Dinh et al. 2020, Algorithm 1"
    cost: ClassVar[str] = "1 model up, 1 down; 1 remembered; K times the training"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "lam", self.lam > 0, "must be above 0")
        require(self, "lam", self.lr * self.lam < 2, f"must be below 2 / lr = {2 / self.lr:g}")
        require(self, "inner_steps", self.inner_steps >= 1, "must be at least 1")
        require(self, "inner_lr", self.inner_lr > 0, "must be above 0")
        require(self, "beta", self.beta > 0, "must be above 0 (at 0 the global model never moves)")

    def update(self, state: Record, replies: Replies) -> Record:
        return state.replace(
            params=state.params + replies.mean["update"] * self.beta,
            buffers=averaged(state.buffers, replies.mean),
            round=state.round + 1,
        )

    def remember(self, task: Task, received: Record) -> Record:
        return Record(params=received.params, buffers=received.buffers)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return super().begin(task, received, Record(), data).replace(theta=received.params)

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        theta, optimizer, buffers = local.theta, local.optimizer, local.buffers
        start = None
        for _ in range(self.inner_steps):
            gradient, loss, buffers = task.gradient(theta, buffers, batch)
            start = loss if start is None else start
            gradient = gradient + (theta - local.params) * self.lam
            if self.clip:
                gradient = clip_by_norm(gradient, self.clip)
            theta, optimizer = self.solver().update(gradient, optimizer, theta, self.inner_lr)
        assert start is not None
        rows = batch.mask.sum()
        return local.replace(
            params=local.params - (local.params - theta) * (local.lr * self.lam),
            theta=theta,
            buffers=buffers,
            optimizer=optimizer,
            loss=local.loss + (start * rows).to(local.loss.dtype),
            seen=local.seen + rows,
            steps=local.steps + 1,
        )

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, _ = super().finish(task, local, data)
        reply = reply._replace(weight=torch.ones_like(reply.weight))
        return reply, Record(params=local.theta, buffers=local.buffers)

    def personal(self, received: Record, memory: Record) -> Model:
        return memory.params, memory.buffers
