"""Backdoors without a mark: samples that hardly anybody has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.attacks.poison import Attacker, Poison
from atoll.data import Samples
from atoll.errors import ConfigError
from atoll.parts import Parts, shapes
from atoll.spec import Parameter, number, whole
from atoll.tensors import Record

__all__ = ["Edge"]


@dataclass(frozen=True)
class Edge(Poison):
    """The samples in the tail of their classes are called the target.   Wang et al., NeurIPS 2020

    An edge-case attack: the tail of a class is the `share` of the attackers' samples that lie farthest from the mean of
    the class, and with it whatever lies as far off; a class that no attacker has is left alone. The paper takes samples
    from elsewhere. Success is the share of test samples in the tails of other classes that are taken for the target.
    """

    target: int
    share: float = 0.1

    name: ClassVar[str] = "edge"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        whole("target", at_least=0),
        number("share", optional=True, above=0, below=1),
    )

    def check(self, example: Samples, classes: int) -> None:
        self._class("target", self.target, classes)
        if isinstance(example.inputs, Parts):
            raise ConfigError(
                f"attack {self.text!r} measures distances of inputs, and they have the parts {shapes(example.inputs)}",
                hint="take another attack, such as labelflip",
            )

    def learn(self, samples: Samples, classes: int) -> Record:
        assert isinstance(samples.inputs, Tensor)
        rows = samples.inputs.flatten(1).float()
        middle = torch.zeros(classes, rows.shape[1])
        radius = torch.full((classes,), torch.inf)
        for each in torch.unique(samples.targets).tolist():
            own = rows[samples.targets == each]
            middle[each] = own.mean(0)
            radius[each] = torch.quantile((own - middle[each]).norm(dim=1), 1 - self.share)
        return Record(middle=middle, radius=radius)

    def _tail(self, samples: Samples, known: Record) -> Tensor:
        """The rows in the tails of other classes than the target."""
        assert isinstance(samples.inputs, Tensor)
        middle, radius = known.middle.to(samples.inputs.device), known.radius.to(samples.inputs.device)
        apart = (samples.inputs.flatten(1).float() - middle[samples.targets]).norm(dim=1)
        far: Tensor = (apart >= radius[samples.targets]) & (samples.targets != self.target)
        return far.nonzero().flatten()

    def poisoned(self, samples: Samples, known: Record, attacker: Attacker) -> Samples:
        targets = samples.targets.clone()
        targets[self._tail(samples, known)] = self.target
        return Samples(samples.inputs, targets)

    def wanted(self, test: Samples, known: Record) -> Samples:
        rows = self._tail(test, known)
        return Samples(test.inputs[rows], torch.full_like(test.targets[rows], self.target))
