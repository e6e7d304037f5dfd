"""Targets that adapt the model to themselves, by how sure and how varied its predictions are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from atoll.contract import ClientData, Population, Program
from atoll.errors import ConfigError
from atoll.gradient import grad_and_value
from atoll.methods.adapt.targets import Targeted
from atoll.methods.finetune import Tuned
from atoll.methods.parts.features import watched, widths
from atoll.methods.parts.settings import require
from atoll.methods.parts.shared import head
from atoll.optimizers import clip_by_norm
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, map_leaves

__all__ = ["SHOT", "centroids", "information"]

_TUNED = ("params", "buffers", "optimizer")


@dataclass(frozen=True, kw_only=True)
class SHOT(Targeted):
    """Targets fit the body to themselves under the sources' head.   Liang, Hu and Feng, ICML 2020

    source:  as FedAvg
    target:  to predict:  v <- w_t;  for a few epochs  v <- v - lr grad L(v; batch)  on all layers but the last,
             L = mean entropy of predictions - entropy of the mean prediction + beta (cross entropy to pseudo labels);
             a pseudo label is the class whose centroid is nearest to the features by the cosine
    server:  as FedAvg over the sources

    Centroids are means of features by the predictions of w_t, then once more by the labels that these give. Nothing
    leaves a target. The model is made anew whenever it is asked for. Judge the personal models.

    Args:
        adapt_epochs: epochs before a target predicts.
        adapt_lr: learning rate of them; none means lr.
        beta: weight of pseudo labels; 0.3 in the paper.

    Traps: predictions that are mostly wrong get surer all the same. Centroids are those of w_t in all epochs, where
    the authors take them anew in each; and the head has no weight normalisation of its own, which is a matter of the
    model.
    """

    adapt_epochs: int = 5
    adapt_lr: float | None = None
    beta: float = 0.3

    paper: ClassVar[str] = "Liang et al. 2020 (SHOT)"
    cost: ClassVar[str] = "1 model up, 1 down; training at targets to predict"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "adapt_epochs", self.adapt_epochs >= 1, "must be at least 1")
        require(self, "adapt_lr", self.adapt_lr is None or self.adapt_lr > 0, "must be above 0")
        require(self, "beta", self.beta >= 0, "must not be negative")

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        if self.targets:
            if population.example is not None:
                widths(task, population.example, "SHOT")
            if head(task, 1) >= state.params.keys():
                raise ConfigError(
                    "SHOT adapts all layers but the last, and the model has one",
                    hint="choose a model with hidden layers",
                )
        return state

    def programs(self) -> Mapping[str, Program]:
        if not self.targets:
            return {}
        return {"personal": Fitted(self, self.adapt_epochs, self.adapt_lr or self.lr)}


@dataclass(frozen=True)
class Fitted(Tuned):
    """The client program that fits a target's body, and judges the model on the client's test data."""

    method: SHOT

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train", "test")

    def start(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().start(task, received, memory, data)
        assert data.train is not None
        with watched(task, len(data.train.mask)) as seen:
            outputs, _ = task.predict(local.params, local.buffers, data.train.inputs)
        return local.replace(centroids=centroids(outputs, seen(), data.train.mask))

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        def objective(params: Tensors) -> tuple[Tensor, Tensors]:
            with watched(task, len(batch.mask)) as seen:
                outputs, moved = task.predict(params, local.buffers, batch.inputs, batch=batch)
            return self.loss(outputs, seen(), local.centroids, batch.mask), moved

        gradient, _, buffers = grad_and_value(objective, local.params)
        fixed = head(task, 1)
        gradient = gradient.map_names(lambda name, value: value * 0 if name in fixed else value)
        method = self.method
        if method.clip:
            gradient = clip_by_norm(gradient, method.clip)
        params, optimizer = method.solver().update(gradient, local.optimizer, local.params, local.lr)
        params = params.map_names(lambda name, value: local.params[name] if name in fixed else value)
        stepped = {"params": params, "buffers": buffers, "optimizer": optimizer}
        target = local.received.target > 0
        return local.replace(
            **{name: map_leaves(partial(torch.where, target), stepped[name], local[name]) for name in _TUNED}
        )

    def loss(self, outputs: Tensor, z: Tensor, known: Tensor, mask: Tensor) -> Tensor:
        """L of a batch: outputs [b, C], features [b, d], centroids [C, d]."""
        found = information(outputs, mask)
        if self.method.beta:
            label = nearest(z.detach(), known)
            told = F.cross_entropy(outputs, label, reduction="none")
            found = found + self.method.beta * torch.sum(told * mask) / mask.sum().clamp(min=1)
        return found


def information(outputs: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy of predictions less the entropy of the mean prediction: minus the information in them."""
    log = torch.log_softmax(outputs, 1)
    share = log.exp()
    count = mask.sum().clamp(min=1)
    own = torch.sum(-(share * log).sum(1) * mask) / count
    mean = (share * mask.unsqueeze(1)).sum(0) / count
    return own + torch.sum(mean * torch.log(mean + 1e-8))


def centroids(outputs: Tensor, z: Tensor, mask: Tensor) -> Tensor:
    """Features' means by class [C, d], of unit length: by predictions first, then by the labels that these give."""
    share = torch.softmax(outputs, 1) * mask.unsqueeze(1)
    first = F.normalize(share.T @ z, dim=1)
    member = F.one_hot(nearest(z, first), outputs.shape[1]).to(z.dtype) * mask.unsqueeze(1)
    second = F.normalize(member.T @ z, dim=1)
    return torch.where(member.sum(0).unsqueeze(1) > 0, second, first)


def nearest(z: Tensor, known: Tensor) -> Tensor:
    """The class whose centroid is nearest by the cosine, [n]."""
    return (F.normalize(z, dim=1) @ known.T).argmax(1)
