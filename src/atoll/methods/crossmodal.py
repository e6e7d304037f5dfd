"""Contrast between parts: an embedding of one part is pulled to what the other parts make of its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from atoll.contract import ClientData, Population, Replies, Reply, Work
from atoll.errors import ConfigError
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.embeddings import embedded, embeddings, has, named
from atoll.methods.parts.features import classes, gradient_with
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

__all__ = ["CrossModal"]


@dataclass(frozen=True, kw_only=True)
class CrossModal(FedAvg):
    """Pull each part to the other parts' prototypes.   After Yu et al., ICLR 2023, and Tan et al., AAAI 2022

    client:  w_k <- w_t;  w_k <- w_k - lr grad (F_k + mu A)(w_k; batch),
             A = mean over the batch of  sum over parts m that a sample has of
                 mean over other parts o of  -log(e^{cos(e_m, p_oy) / tau} / sum_c e^{cos(e_m, p_oc) / tau}),
             e_m what the encoder of m makes of the sample, y its class; c are the classes of which p_oc is known,
             and other parts of which p_oy is not known are left out
             sends w_k - w_t  and, over all its samples that have m and are of class c,  s_kmc = sum of e_m  and their
             number n_kmc,  both over n_k
    server:  w_{t+1} as FedAvg;  p_mc <- sum_k s_kmc / sum_k n_kmc for every part and class that somebody has (both
             sums are the means over clients by which models are averaged);  the others stay as they were

    So a client with one part learns from those who have others, without a sample of theirs. With mu = 0, and in the
    first round, where no prototype is known, this is FedAvg. It is for samples of several parts by name, and models in
    which each part has a submodule with its name, all of one width (see `atoll.models.Fused`): e_m is what that gives.
    In attention fusion these are embeddings. In late fusion they are the logits of the part by itself, and prototypes
    are mean logits a class, as in federated distillation (Jeong et al., 2018).

    Args:
        mu: weight of the contrast.
        tau: temperature; smaller is sharper.

    Traps: this is the contrast across modalities of CreamFL, with class prototypes in the place of what
    a server's model makes of public samples, which it needs and this does not; its contrast within a modality, its
    weights of representations and its distillation at the server are not here. Gradients flow through e_m only.
    Prototypes are of the models as clients leave them, in evaluation mode, and one round old. Without secure
    aggregation the server learns how many samples of each class a client has, and the mean embedding of each.
    """

    mu: float = 0.1
    tau: float = 0.2

    paper: ClassVar[str] = "after Yu et al. 2023 (CreamFL) and Tan et al. 2022 (FedProto)"
    cost: ClassVar[str] = "1 model and an embedding a part and class up and down; 1 more pass"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "mu", self.mu >= 0, "must not be negative")
        require(self, "tau", self.tau > 0, "must be above 0")

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",)

    # ---- server half -----------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state, example, who = super().setup(task, population), population.example, type(self).__name__
        if example is None:
            raise ConfigError(f"{who} needs one input to learn the parts", hint="Population(example=...)")
        names = named(example, who)
        with torch.no_grad():
            with embedded(task, len(example), names) as seen:
                outputs, _ = task.predict(state.params, state.buffers, example)
            _, parts, d = seen().shape
        like, count = (
            next(p for p in state.params.values() if p.is_floating_point()),
            classes(task, outputs, who),
        )
        return state.replace(prototypes=like.new_zeros(parts, count, d), known=like.new_zeros(parts, count))

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        return replace(work, shared=work.shared.replace(prototypes=state.prototypes, known=state.known))

    def update(self, state: Record, replies: Replies) -> Record:
        sums, counts = (replies.mean[name].to(state.known.dtype) for name in ("sums", "counts"))
        seen = counts > 0
        means = sums / torch.where(seen, counts, 1.0).unsqueeze(2)
        return (
            super()
            .update(state, replies)
            .replace(
                prototypes=torch.where(seen.unsqueeze(2), means, state.prototypes),
                known=torch.where(seen, 1.0, state.known),
            )
        )

    def expects(self, state: Record) -> Record:
        return super().expects(state).replace(sums=state.prototypes, counts=state.known)

    # ---- client half -----------------------------------------------------------------------------------------

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        if not self.mu:
            return super().gradient(task, local, batch)
        watch = partial(embedded, names=named(batch.inputs, type(self).__name__))
        prototypes, known = local.received.prototypes, local.received.known

        def contrasted(loss: Tensor, e: Tensor) -> Tensor:
            apart = contrast(e, has(batch.inputs, e), batch.targets, prototypes, known, self.tau)
            return loss + self.mu * torch.sum(apart * batch.mask) / batch.mask.sum().clamp(min=1)

        gradient, loss, buffers = gradient_with(task, local.params, local.buffers, batch, contrasted, watch)
        return gradient, self.tallied(local, batch, loss, buffers)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        sums, counts = torch.zeros_like(local.received.prototypes), torch.zeros_like(local.received.known)
        if data.train is not None:
            inputs, targets, mask, _ = data.train
            names = named(inputs, type(self).__name__)
            e = embeddings(task, local.params, local.buffers, inputs, names).to(sums.dtype)
            of = _one_hot(targets, counts) * mask.unsqueeze(1).to(e.dtype)  # [n, C]
            there = has(inputs, e)  # [n, M]
            sums = torch.stack(
                [(of * row.unsqueeze(1)).T @ z for row, z in zip(there.T, e.unbind(1), strict=True)]
            )
            counts = there.T @ of
        per = data.count.clamp(min=1)
        return reply._replace(values=reply.values.replace(sums=sums / per, counts=counts / per)), memory


def contrast(
    e: Tensor, here: Tensor, targets: Tensor, prototypes: Tensor, known: Tensor, tau: float
) -> Tensor:
    """A of each sample [b]: of embeddings e [b, M, d] of the parts that are `here` [b, M], targets [b], prototypes
    [M, C, d] of which those that are `known` [M, C] count."""
    (rows, parts, d), count = e.shape, known.shape[1]
    near = (_unit(e.to(prototypes.dtype)).reshape(-1, d) @ _unit(prototypes).reshape(-1, d).T) / tau
    near = near.reshape(rows, parts, parts, count)  # of part m, to part o's prototype of class c
    near = torch.where(known > 0, near, torch.full_like(near, -1e30))
    highest = near.detach().amax(3, keepdim=True)
    total = torch.log(torch.exp(near - highest).sum(3)) + highest.squeeze(3)
    own = _one_hot(targets, known)
    other = (1 - torch.eye(parts, dtype=known.dtype, device=known.device)) * (own @ known.T).unsqueeze(
        1
    )  # [b, M, M]
    apart = total - (near * own[:, None, None, :]).sum(3)
    apart = torch.where(other > 0, apart, torch.zeros_like(apart)).sum(2) / other.sum(2).clamp(min=1)
    return (apart * here).sum(1)


def _one_hot(targets: Tensor, known: Tensor) -> Tensor:
    return (targets.unsqueeze(1) == torch.arange(known.shape[1], device=known.device)).to(known.dtype)


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1; 0 where a row is zero."""
    return rows / rows.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
