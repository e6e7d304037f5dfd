"""Shorten what a client sends, so that no single one of them counts for more than so much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll.channel.transform import Place, Transform, Update, plainly
from atoll.privacy.mechanisms import next_clip
from atoll.tensors import Record, leaves, map_leaves

__all__ = ["Clip"]


@dataclass(frozen=True)
class Clip(Transform):
    """Scale an update down to an L2 (or L1) norm of at most `norm`.   McMahan et al., ICLR 2018, "flat clipping"

    u <- u * min(1, C / |u|), where u is all that the client sends, joined: SCAFFOLD's control variates as well as the
    difference of its model. With a `quantile` the bound follows the norms of clients' updates:   Andrew et al.,
    NeurIPS 2021

    C <- C * exp(-rate * (b - quantile)), b the share of the cohort that was not shortened.

    With noise behind it in the chain, b is blurred as well (see `Noise`).

    Args:
        norm: C, or where it begins.
        quantile: the share of updates that C leaves as they are.
        rate: how fast C moves.
        order: of the norm; 1 for Laplace noise.
    """

    norm: float
    quantile: float | None = None
    rate: float = 0.2
    order: Literal[1, 2] = 2

    name: ClassVar[str] = "clip"
    place: ClassVar[Place] = "bound"

    def __post_init__(self) -> None:
        self._require("norm", self.norm > 0, "must be above 0", "inf shortens nothing")
        self._require("quantile", self.quantile is None or 0 < self.quantile < 1, "must lie between 0 and 1")
        self._require("rate", self.rate > 0, "must be above 0")
        self._require(
            "norm",
            self.quantile is None or math.isfinite(self.norm),
            "cannot be where an adaptive bound begins",
            "0.1 is a usual start",
        )

    @property
    def text(self) -> str:
        parts = [self.norm] if self.quantile is None else [self.norm, self.quantile]
        parts += [self.rate] if self.quantile is not None and self.rate != 0.2 else []
        return f"{self.name}:{','.join(map(plainly, parts))}{',order=1' if self.order == 1 else ''}"

    def bound(self, told: Record) -> Tensor:
        """C in this round, a scalar."""
        held: Tensor = torch.tensor(self.norm) if self.quantile is None else told.norm
        return held

    # --- client half ------------------------------------------------------------------------------------------

    def send(self, update: Update, told: Record, own: Record, key: Tensor) -> tuple[Update, Record]:
        norm = self.length(leaves(update.values)).to(update.weight.device)
        bound = self.bound(told).to(norm.device)
        factor = (bound / norm).clamp(max=1)
        inside = (norm <= bound).to(norm.dtype)
        report = update.report
        if self.quantile is not None:
            report = report.replace(inside=inside)
        return update._replace(
            values=map_leaves(
                lambda v: v * factor.to(v.dtype) if v.is_floating_point() else v, update.values
            ),
            report=report,
            metrics=update.metrics.replace(clipped=1 - inside),
        ), own

    def length(self, values: Sequence[Tensor]) -> Tensor:
        """What is bounded, a scalar: the norm of tensors joined, of those in floating point."""
        parts = [v.float() for v in values if v.is_floating_point()]
        if self.order == 1:
            return torch.as_tensor(sum(v.abs().sum() for v in parts))
        return torch.as_tensor(sum(v.square().sum() for v in parts)).sqrt()

    # --- server half ------------------------------------------------------------------------------------------

    def nothing(self) -> Record:
        return Record() if self.quantile is None else Record(inside=torch.zeros(()))

    def begin(self) -> Record:
        return Record() if self.quantile is None else Record(norm=torch.tensor(self.norm))

    def learn(self, state: Record, mean: Record, report: Record, count: int) -> tuple[Record, Record]:
        if self.quantile is None:
            return state, mean
        inside = float(report.inside) / count
        new = next_clip(float(state.norm), inside, self.quantile, self.rate)
        return state.replace(norm=torch.tensor(new)), mean
