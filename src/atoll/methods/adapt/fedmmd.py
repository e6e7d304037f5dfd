"""Features whose distribution is that of the targets', by the mean of random Fourier features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import ClientData, Population
from atoll.methods.adapt.targets import Matched
from atoll.methods.parts.features import features
from atoll.methods.parts.settings import require
from atoll.task import Batch, Task
from atoll.tensors import Record

__all__ = ["FedMMD", "fourier"]


@dataclass(frozen=True, kw_only=True)
class FedMMD(Matched):
    """Give features the targets' distribution.   Long et al., ICML 2015 (MMD); Rahimi and Recht, NeurIPS 2007

    z(f) = sqrt(2 / D) cos(s f'W + b),  W normal and b uniform in [0, 2 pi], from a seed that all know
    source:  w_k <- w_k - lr grad (F_k + lam ||mean of z(f(x)) over the batch - m||^2)(w_k; batch)
    target:  sends  n, sum f(x), sum ||f(x)||^2, sum z(f(x))  by the model as it was received, and no model
    server:  as FedAvg over the sources;  m the mean of the targets' z;  1 / s^2 <- bandwidth times the mean squared
             distance between two of the targets' features

    ||mean z - m||^2 is an estimate of the squared maximum mean discrepancy with a Gaussian kernel of that bandwidth.
    Means of z are sums of D numbers, so that secure aggregation and noise apply to them. s follows features as they
    grow, and m is used with the s that it was made with. Features are what the last layer with parameters reads.

    Args:
        lam: weight of the pull; with 0 this is FedAvg among the sources, to the bit.
        bandwidth: of the kernel, as a multiple of the mean squared distance.
        size: D, how many random features.

    Traps: the mean over a small batch is far from its expectation by chance; take large ones. m is one round old, and
    there is none before the third round: in the first nothing is known of how large features are.
    """

    bandwidth: float = 1.0
    size: int = 512

    paper: ClassVar[str] = "Long et al. 2015 (DAN), by random Fourier features"
    cost: ClassVar[str] = "1 model and D numbers up and down; 1 more pass"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "lam", self.lam >= 0, "must not be negative")
        require(self, "bandwidth", self.bandwidth > 0, "must be above 0")
        require(self, "size", self.size >= 1, "must be at least 1")

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        if not self.targets:
            return state
        key = torch.tensor(seeds.address(population.seed, "fedmmd"))
        return state.replace(matched=state.matched.replace(key=key))

    def blank(self, width: int) -> Record:
        zero = torch.zeros(())
        return Record(
            mean=torch.zeros(self.size),
            scale=zero,
            next=zero.clone(),
            key=torch.zeros((), dtype=torch.int64),
            like=torch.zeros(width),  # a feature's form
        )

    def zeros(self, width: int) -> Record:
        zero = torch.zeros((), dtype=torch.float64)
        return Record(
            count=zero,
            total=torch.zeros(width, dtype=torch.float64),
            square=zero.clone(),
            mapped=torch.zeros(self.size, dtype=torch.float64),
        )

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        if not self.targets:
            return local
        key, width = received.matched.key, len(received.matched.like)
        weight = seeds.normal(seeds.fold(key, 1), (width, self.size))
        phase = seeds.uniform(seeds.fold(key, 2), (self.size,)) * (2 * math.pi)
        return local.replace(fourier=Record(weight=weight, phase=phase))

    def sums(self, task: Task, local: Record, data: Batch) -> Record:
        z = features(task, local.params, local.buffers, data.inputs)
        kept = data.mask.to(torch.float64)
        mapped = fourier(z, local.fourier, local.received.matched.next).to(torch.float64)
        z = z.to(torch.float64)
        return Record(
            count=kept.sum(), total=kept @ z, square=torch.sum(z.square().sum(1) * kept), mapped=kept @ mapped
        )

    def learned(self, known: Record, sums: Record) -> Record:
        some, count = sums.count > 1, sums.count.clamp(min=1)
        spread = 2 * (sums.square / count - (sums.total / count).square().sum())
        scale = (self.bandwidth * spread).clamp(min=1e-12).rsqrt()
        new = {"mean": sums.mapped / count, "scale": known.next, "next": scale}
        return known.replace(
            **{
                name: torch.where(some, value.to(known[name].dtype), known[name])
                for name, value in new.items()
            }
        )

    def apart(self, local: Record, z: Tensor, mask: Tensor) -> Tensor:
        target = local.received.matched
        mask = mask.to(z.dtype)
        own = mask @ fourier(z, local.fourier, target.scale) / mask.sum().clamp(min=1)
        gap = torch.sum((own - target.mean.to(z.dtype)).square())
        found: Tensor = (target.scale > 0) * gap
        return found


def fourier(z: Tensor, drawn: Record, scale: Tensor) -> Tensor:
    """Random Fourier features [n, D] of z [n, d]."""
    turned = scale.to(z.dtype) * (z @ drawn.weight.to(z.dtype)) + drawn.phase.to(z.dtype)
    mapped: Tensor = torch.cos(turned) * math.sqrt(2 / len(drawn.phase))
    return mapped
