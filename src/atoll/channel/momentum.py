"""What a client sends is a mean of what it would have sent until now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from atoll.channel.transform import Place, Setting, Transform, Update, filled, plainly
from atoll.tensors import Record, leaves, named_tensors

__all__ = ["Momentum"]


@dataclass(frozen=True)
class Momentum(Transform):
    """Momentum of workers.   Karimireddy et al., ICML 2021

    m <- beta m + (1 - beta) u, and m is sent; at first m = u. All of an update, and each client for itself, however
    many rounds lie between two of its turns.

    Single updates are noisy, and liars hide in the noise: a robust rule that sees each one's mean over 1 / (1 - beta)
    rounds sees who is different.

    Args:
        beta: how much of the past is kept.
    """

    beta: float
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()
    """Of the tensors in floating point, field by field; a chain fills them in."""

    name: ClassVar[str] = "momentum"
    place: ClassVar[Place] = "gather"

    def __post_init__(self) -> None:
        self._require("beta", 0 <= self.beta < 1, "must be in [0, 1)", "0.9 is usual")

    @property
    def text(self) -> str:
        return f"{self.name}:{plainly(self.beta)}"

    @property
    def remembers(self) -> bool:
        return True

    def fitted(self, before: tuple[Transform, ...], setting: Setting) -> Momentum:
        return replace(self, shapes=setting.shapes)

    def own(self, received: Record) -> Record:
        device = next((v.device for v in leaves(received) if isinstance(v, Tensor)), None)
        shapes = [shape for part in self.shapes for shape in part]
        found = {str(at): torch.zeros(shape, device=device) for at, shape in enumerate(shapes)}
        return Record(found, begun=torch.zeros((), device=device))

    def send(self, update: Update, told: Record, own: Record, key: Tensor) -> tuple[Update, Record]:
        named = dict(named_tensors(update.values))
        floats = sorted(name for name, value in named.items() if value.is_floating_point())
        there = update.weight > 0  # a reply without weight counts for nothing: nothing of it was sent
        beta = self.beta * own.begun
        means = {n: beta * own[str(at)] + (1 - beta) * named[n].float() for at, n in enumerate(floats)}
        kept = {str(at): torch.where(there, means[name], own[str(at)]) for at, name in enumerate(floats)}
        own = Record(kept, begun=torch.where(there, 1.0, own.begun))
        return update._replace(values=filled(update.values, {**named, **means})), own
