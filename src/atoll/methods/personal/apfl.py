"""A mixture of the shared model and one of the client's own, in the share that serves the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import ClientData, Model, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.settings import require
from atoll.optimizers import clip_by_norm
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, map_leaves, to_device

__all__ = ["APFL"]


@dataclass(frozen=True, kw_only=True)
class APFL(FedAvg):
    """Mix the shared model with one of the client's own.   Deng, Kamani, Mahdavi 2020, Algorithm 1

    client:  w_k <- w_t, trained as in FedAvg;  and on the same batches, with m_k = a_k v_k + (1 - a_k) w_k,
             v_k <- v_k - lr a_k grad F_k(m_k; batch)
             once a round, with m_k, v_k and w_k as the round begins and a batch B that is drawn for it:
             a_k <- clip(a_k - lr <grad F_k(m_k; B), v_k - w_k>, 0, 1)
    server:  as FedAvg, of the w_k

    The global model is that of FedAvg, to the bit. A client predicts with a_k v_k + (1 - a_k) w_t. Where a_k
    stays at 1 that is the model of local training, and where it stays at 0 the global one, to the bit.

    Args:
        alpha: the share of the client's own model at the start.
        adapt_alpha: whether clients adapt their share, once a round.

    Traps: parameters are mixed, not outputs. The share has no decay of its own: implementations that add
    0.02 a_k to its gradient draw every client toward the global model. The gradient of the share is taken
    before v_k and w_k move, and the new share holds from the second batch on. Its batch is not the round's first: a
    step is one function for all batches, and the product over all parameters would be paid for at each of them.
    """

    alpha: float = 0.5
    adapt_alpha: bool = True

    paper: ClassVar[str] = "Deng et al. 2020, Algorithm 1"
    cost: ClassVar[str] = "1 model up, 1 down; 1 remembered; twice the training"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", 0 <= self.alpha <= 1, "must be in [0, 1]")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",) if self.adapt_alpha else ()

    def remember(self, task: Task, received: Record) -> Record:
        params, buffers = task.initial()
        memory = Record(params=params, buffers=buffers, alpha=torch.tensor(self.alpha))
        return to_device(memory, received.lr.device)  # type: ignore[no-any-return]

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, Record(), data)
        share = self.share(task, received, memory, data) if self.adapt_alpha else memory.alpha
        return local.replace(own=memory, own_optimizer=self.solver().init(memory.params), share=share)

    def share(self, task: Task, received: Record, memory: Record, data: ClientData) -> Tensor:
        """The share that holds from the second batch on."""
        between = mixed(memory.alpha, memory.params, received.params)
        gradient, _, _ = task.gradient(between, memory.buffers, drawn(data, self.batch_size))
        slope = gradient.dot(memory.params - received.params)
        share: Tensor = memory.alpha - received.lr * slope
        return share.clamp(0, 1).to(memory.alpha.dtype)

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        own = local.own
        between = mixed(own.alpha, own.params, local.params)
        gradient, _, buffers = task.gradient(between, own.buffers, batch)
        gradient = gradient * own.alpha
        if self.clip:
            gradient = clip_by_norm(gradient, self.clip)
        params, optimizer = self.solver().update(gradient, local.own_optimizer, own.params, local.lr)
        alpha = torch.where(local.steps == 0, local.share, own.alpha)
        own = Record(params=params, buffers=buffers, alpha=alpha)
        return super().step(task, local.replace(own=own, own_optimizer=optimizer), batch)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        return super().finish(task, local, data)[0], local.own

    def personal(self, received: Record, memory: Record) -> Model:
        return (
            mixed(memory.alpha, memory.params, received.params),
            mixed(memory.alpha, memory.buffers, received.buffers),
        )


def drawn(data: ClientData, size: int | None) -> Batch:
    """So many of a client's training samples, or all where there are fewer, drawn from its stream."""
    assert data.train is not None
    whole = data.train._replace(key=seeds.fold(data.key, 1))
    if size is None:
        return whole
    late = seeds.uniform(data.key, (len(whole.mask),)) + 2 * (1 - whole.mask)  # padding comes last
    rows = late.argsort(stable=True)[:size]
    inputs, targets, mask = map_leaves(lambda part: part[rows], whole[:3])
    return Batch(inputs, targets, mask, whole.key)


def mixed(share: Tensor, own: Tensors, other: Tensors) -> Tensors:
    """share * own + (1 - share) * other; integers are the client's own."""
    return Tensors(
        {
            n: torch.lerp(other[n], v, share.to(v.dtype)) if v.is_floating_point() else v
            for n, v in own.items()
        }
    )
