"""Normalisation by the statistics of the client that predicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from atoll.contract import ClientData, Population, Program, Reply
from atoll.errors import ConfigError
from atoll.methods.adapt.targets import Targeted
from atoll.task import Task
from atoll.tensors import Record, Tensors

__all__ = ["AdaBN", "statistics"]


@dataclass(frozen=True, kw_only=True)
class AdaBN(Targeted):
    """Targets normalise by their own statistics.   Li, Wang, Shi, Hou and Liu, Pattern Recognition 2018

    source:  as FedAvg
    target:  to predict: the global model, with the mean and variance of every BatchNorm layer taken anew over all
             of its training inputs, layer after layer in one pass
    server:  as FedAvg over the sources

    Nothing leaves a target. Its labels are not read, nor any of its own weights learned. Judge the personal models;
    the global one has the sources' statistics.

    Traps: statistics are those of a pass in training mode over all data at once, dropout aside, so that each layer's
    are of what the layers before it give with theirs; running means over batches would lag behind.
    """

    paper: ClassVar[str] = "Li et al. 2018 (AdaBN)"
    cost: ClassVar[str] = "1 model up, 1 down; 1 more pass to predict"

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        if self.targets and not task.normalises:
            raise ConfigError(
                "AdaBN adapts the statistics of BatchNorm layers, and the model has none",
                hint="choose a model with BatchNorm, such as mlp-bn",
            )
        return state

    def programs(self) -> Mapping[str, Program]:
        return {"personal": Refitted(self)} if self.targets else {}


@dataclass(frozen=True)
class Refitted(Program):
    """The client program that judges the received model with a target's own statistics on the client's test data."""

    method: AdaBN

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train", "test")

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        assert data.train is not None
        own = statistics(task, received.params, received.buffers, data)
        buffers = own.map_names(
            lambda name, value: torch.where(received.target > 0, value, received.buffers[name])
        )
        return Record(params=received.params, buffers=buffers, memory=memory)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        assert data.test is not None
        totals = task.totals(local.params, local.buffers, data.test)
        return Reply(Record(), totals.count, totals), local.memory


def statistics(task: Task, params: Tensors, buffers: Tensors, data: ClientData) -> Tensors:
    """Buffers, those of BatchNorm layers with the mean and the unbiased variance over all training inputs."""
    assert data.train is not None
    with _at_once(task.module):
        _, moved = task.predict(params, buffers, data.train.inputs, batch=data.train)
    owners = {
        name
        for name, layer in task.module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }
    return buffers.map_names(
        lambda name, value: (
            moved[name] if name.rpartition(".")[0] in owners and value.is_floating_point() else value
        )
    )


@contextmanager
def _at_once(module: nn.Module) -> Iterator[None]:
    """Inside, a pass in training mode leaves BatchNorm with the statistics of its batch, and drops nothing."""
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    drops = [each for each in module.modules() if isinstance(each, nn.modules.dropout._DropoutNd)]
    before = [each.momentum for each in norms], [each.p for each in drops]
    try:
        for norm in norms:
            norm.momentum = 1.0
        for drop in drops:
            drop.p = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, before[0], strict=True):
            norm.momentum = momentum
        for drop, p in zip(drops, before[1], strict=True):
            drop.p = p
