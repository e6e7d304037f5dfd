"""The global model beside a memory of the client's own samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.contract import ClientData, Population, Program, Reply
from atoll.methods.fedavg import FedAvg
from atoll.methods.parts.features import features, watched, widths
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record

__all__ = ["KNNPer"]

_GRID = tuple(at / 10 for at in range(11))
_LEAST = 1e-12  # the least probability that neighbours give a class: losses stay finite
_ROWS = 256  # samples whose distances are held at a time


@dataclass(frozen=True, kw_only=True)
class KNNPer(FedAvg):
    """Average, and ask the nearest local samples too.   Marfoq et al., ICML 2022

    client:  as FedAvg;  to predict:  p(y | x) = lam_k q(y | x) + (1 - lam_k) softmax(h(x))_y,
             q(y | x) = sum of e_i over neighbours of class y / sum of e_i over all,  e_i = e^{-d_i / bandwidth},
             neighbours: the k of its training samples x_i with least d_i = ||f(x) - f(x_i)||
    server:  as FedAvg

    f are the features that the last layer with parameters of the received model h reads. The global model is that of
    FedAvg, to the bit; nothing more is sent, and nothing is kept between rounds. With lam=0 clients predict with the
    global model, with lam=1 and k=1 they take the label of the nearest sample. A client with fewer than k samples asks
    them all, one with none predicts with the global model.

    Args:
        k: neighbours; the authors take 10. Samples as far as the k-th count as well.
        lam: weight of the neighbours, in [0, 1]. None: each client takes the best of 0, 0.1, ..., 1 on its validation
            samples, by accuracy, then by loss, then the smallest; one without them takes 0.
        bandwidth: distance at which a neighbour's weight has fallen to 1/e.

    Traps: d is the Euclidean distance, neither squared nor divided by the number of features; the authors' code has
    d^2 / (number of features x bandwidth), other libraries d / number of features. Features of networks without
    normalisation lie far apart: with bandwidth=1 the nearest sample then decides alone, whatever k is. Tune it to the
    distances at hand. q is at least 1e-12, so that the loss is finite where no neighbour has the right label.
    """

    k: int = 10
    lam: float | None = None
    bandwidth: float = 1.0

    paper: ClassVar[str] = "Marfoq et al. 2022 (kNN-Per)"
    cost: ClassVar[str] = "1 model up, 1 down; features of all local samples to predict"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "k", self.k >= 1, "must be at least 1")
        require(self, "lam", self.lam is None or 0 <= self.lam <= 1, "must be in [0, 1], or none")
        require(self, "bandwidth", self.bandwidth > 0, "must be above 0")

    def setup(self, task: Task, population: Population) -> Record:
        if population.example is not None:
            widths(task, population.example, "KNNPer")
        return super().setup(task, population)

    @property
    def beside(self) -> str:
        return f"the {self.k} nearest of the client's own samples, mixed with the global model"

    def programs(self) -> Mapping[str, Program]:
        return {"personal": Interpolated(self)}


@dataclass(frozen=True)
class Interpolated(Program):
    """The client program that judges the received model and its neighbours, mixed, on the client's test data."""

    method: KNNPer

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train", "validation", "test") if self.method.lam is None else ("train", "test")

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        return Record(params=received.params, buffers=received.buffers)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        assert data.test is not None
        keys = None
        if data.train is not None:
            keys = features(task, local.params, local.buffers, data.train.inputs)

        def parts(batch: Batch) -> tuple[Tensor, Tensor]:
            """(q, log softmax(h)), both [n, C]."""
            with watched(task, len(batch.mask)) as seen:
                outputs, _ = task.predict(local.params, local.buffers, batch.inputs)
            q = torch.zeros_like(outputs)
            if data.train is not None and keys is not None:
                k, bandwidth, classes = self.method.k, self.method.bandwidth, outputs.shape[1]
                q = neighbours(seen(), keys, data.train.targets, data.train.mask, k, bandwidth, classes)
            return q.to(outputs.dtype), torch.log_softmax(outputs, 1)

        test = parts(data.test)
        lam = test[0].new_tensor(self.method.lam or 0.0)
        if self.method.lam is None and data.validation is not None:
            lam = best(task, *parts(data.validation), data.validation)
        totals = task.summed(task.judged(mixture(lam, *test), data.test.targets), data.test)
        return Reply(Record(), totals.count, totals), Record()


def neighbours(
    z: Tensor, keys: Tensor, labels: Tensor, real: Tensor, k: int, bandwidth: float, classes: int
) -> Tensor:
    """Votes of the k nearest keys for each class, [n, C] with rows of sum 1, or 0 where no key is real.

    `z` [n, d] are features to be judged, `keys` [m, d] known ones with `labels` [m] and mask `real` [m].
    """
    wanted, votes = min(k, len(keys)), []
    member = (labels.unsqueeze(1) == torch.arange(classes, device=z.device)).to(z.dtype)
    for rows in torch.split(z, _ROWS):
        apart = torch.cdist(rows, keys, compute_mode="donot_use_mm_for_euclid_dist")
        apart = torch.where(real > 0, apart, math.inf)
        edge = apart.topk(wanted, largest=False).values.amax(1, keepdim=True)
        gap = apart - apart.amin(
            1, keepdim=True
        )  # the nearest has weight 1: far neighbours do not vanish all
        weight = torch.where((apart <= edge) & (real > 0), -gap / bandwidth, -math.inf).exp()
        votes.append((weight / weight.sum(1, keepdim=True).clamp(min=1)) @ member)
    return torch.cat(votes)


def mixture(lam: Tensor, q: Tensor, model: Tensor) -> Tensor:
    """log(lam q + (1 - lam) e^model), [n, C]; where q has no votes, lam is 0."""
    lam = torch.where(q.sum(1, keepdim=True) > 0, lam, 0.0)
    return torch.logaddexp(lam.log() + q.clamp(min=_LEAST).log(), (-lam).log1p() + model)


def best(task: Task, q: Tensor, model: Tensor, batch: Batch) -> Tensor:
    """The lam of the grid with most samples right; among those the one of least loss, then the smallest."""
    right, losses = [], []
    for lam in _GRID:
        outputs = mixture(q.new_tensor(lam), q, model)
        right.append(torch.sum((outputs.argmax(1) == batch.targets) * batch.mask))
        losses.append(torch.sum(task.judged(outputs, batch.targets).loss * batch.mask))
    hits, loss = torch.stack(right), torch.stack(losses)
    loss = torch.where(hits >= hits.max(), loss, math.inf)
    return torch.where(loss <= loss.min(), q.new_tensor(_GRID), 1.0).min()
