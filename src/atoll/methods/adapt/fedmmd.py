"""Features whose distribution is that of the targets', by the mean of random Fourier features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import ClientData, Population
from atoll.methods.adapt.targets import SIDES, Matched
from atoll.methods.parts.settings import require
from atoll.task import Task
from atoll.tensors import Record

__all__ = ["FedMMD", "fourier"]


@dataclass(frozen=True, kw_only=True)
class FedMMD(Matched):
    """Give features the targets' distribution.   Long et al., ICML 2015 (MMD); Rahimi and Recht, NeurIPS 2007

    z(f) = sqrt(2 / D) cos(s f'W + b),  W normal and b uniform in [0, 2 pi], from a seed that all know
    source:  w_k <- w_k - lr grad (F_k + lam ||mean of z(f(x)) over the batch - m_T||^2)(w_k; batch)
    target:  w_k <- w_k - lr grad (lam ||mean of z(f(x)) over the batch - m_S||^2)(w_k; batch)
    both:    send  n, sum f(x), sum ||f(x)||^2, sum z(f(x))  by the model as it was received
    server:  w <- w + mean of the sources' updates + mean of the targets';  m_S and m_T the means of z on either side;
             1 / s^2 <- bandwidth times the mean squared distance between two features of all

    ||mean z - m||^2 is an estimate of the squared maximum mean discrepancy with a Gaussian kernel of that bandwidth.
    Means of z are sums of D numbers, so that secure aggregation and noise apply to them. s follows features as they
    grow, and means are used with the s that they were made with. Features are what the last layer with
    parameters reads.

    Args:
        lam: weight of the pull; with 0 this is FedAvg among the sources, to the bit.
        bandwidth: of the kernel, as a multiple of the mean squared distance.
        size: D, how many random features.

    Traps: the mean over a small batch is far from its expectation by chance; take large ones. Means are one round old,
    and there are none before the third round: in the first nothing is known of how large features are.
    """

    bandwidth: float = 1.0
    size: int = 512

    paper: ClassVar[str] = "Long et al. 2015 (DAN), by random Fourier features"
    cost: ClassVar[str] = "2 models, 2 D numbers up; 1, 2 D down; 2 passes a step"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "bandwidth", self.bandwidth > 0, "must be above 0")
        require(self, "size", self.size >= 1, "must be at least 1")

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        if not self.pulls:
            return state
        zero = torch.zeros(())
        shared = Record(
            key=torch.tensor(seeds.address(population.seed, "fedmmd")),
            like=torch.zeros_like(state.zeros.source.total),  # a feature's form
            scale=zero,
        )
        return state.replace(matched=state.matched.replace(shared=shared))

    def blank(self, width: int) -> Record:
        return Record(mean=torch.zeros(self.size), scale=torch.zeros(()))

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
        if not self.pulls:
            return local
        key, width = received.matched.shared.key, len(received.matched.shared.like)
        weight = seeds.normal(seeds.fold(key, 1), (width, self.size))
        phase = seeds.uniform(seeds.fold(key, 2), (self.size,)) * (2 * math.pi)
        return local.replace(fourier=Record(weight=weight, phase=phase))

    def sums(self, local: Record, z: Tensor, mask: Tensor) -> Record:
        kept = mask.to(torch.float64)
        mapped = fourier(z, local.fourier, local.received.matched.shared.scale).to(torch.float64)
        z = z.to(torch.float64)
        square = torch.sum(z.square().sum(1) * kept)
        return Record(count=kept.sum(), total=kept @ z, square=square, mapped=kept @ mapped)

    def learned(self, matched: Record, sums: Record) -> Record:
        scale = matched.shared.scale
        found = {}
        for side in SIDES:
            known, own = matched[side], sums[side]
            some = own.count > 0
            mean = (own.mapped / torch.where(some, own.count, 1.0)).to(known.mean.dtype)
            found[side] = Record(
                mean=torch.where(some, mean, known.mean), scale=torch.where(some, scale, known.scale)
            )
        count, total, square = (
            sum(sums[side][name] for side in SIDES) for name in ("count", "total", "square")
        )
        spread = 2 * (square / count - (total / count).square().sum())
        new = (self.bandwidth * spread).clamp(min=1e-12).rsqrt().to(scale.dtype)
        return Record(found, shared=matched.shared.replace(scale=new))

    def apart(self, local: Record, known: Record, z: Tensor, mask: Tensor) -> Tensor:
        mask = mask.to(z.dtype)
        own = mask @ fourier(z, local.fourier, known.scale) / mask.sum().clamp(min=1)
        found: Tensor = (known.scale > 0) * torch.sum((own - known.mean.to(z.dtype)).square())
        return found


def fourier(z: Tensor, drawn: Record, scale: Tensor) -> Tensor:
    """Random Fourier features [n, D] of z [n, d]."""
    turned = scale.to(z.dtype) * (z @ drawn.weight.to(z.dtype)) + drawn.phase.to(z.dtype)
    mapped: Tensor = torch.cos(turned) * math.sqrt(2 / len(drawn.phase))
    return mapped
