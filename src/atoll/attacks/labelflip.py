"""Learn wrong labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from atoll.attacks.poison import Attacker, Poison
from atoll.data import Samples
from atoll.errors import ConfigError
from atoll.spec import Parameter, whole
from atoll.tensors import Record

__all__ = ["LabelFlip"]


@dataclass(frozen=True)
class LabelFlip(Poison):
    """Labels are turned around, or those of one class made another's.   Fang et al., USENIX Security 2020

    y <- classes - 1 - y. With `source` and `target`: y <- target where y = source.   Tolpegin et al., ESORICS 2020
    Success is the share of such test samples that get the wrong label which was wanted.
    """

    source: int | None = None
    target: int | None = None

    name: ClassVar[str] = "labelflip"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        whole("source", optional=True, at_least=0),
        whole("target", optional=True, at_least=0),
    )

    def __post_init__(self) -> None:
        if (self.source is None) != (self.target is None) or (
            self.source is not None and self.source == self.target
        ):
            raise ConfigError(
                f"attack 'labelflip': source = {self.source} and target = {self.target}",
                hint="write two classes, labelflip:7,1, or none, labelflip",
            )

    def check(self, example: Samples, classes: int) -> None:
        if self.source is not None and self.target is not None:
            self._class("source", self.source, classes)
            self._class("target", self.target, classes)

    def learn(self, samples: Samples, classes: int) -> Record:
        return Record(classes=classes)

    def poisoned(self, samples: Samples, known: Record, attacker: Attacker) -> Samples:
        targets = samples.targets
        if self.source is None or self.target is None:
            return Samples(samples.inputs, known.classes - 1 - targets)
        return Samples(
            samples.inputs,
            torch.where(targets == self.source, torch.full_like(targets, self.target), targets),
        )

    def wanted(self, test: Samples, known: Record) -> Samples:
        flipped = self.poisoned(test, known, Attacker(0, 0, 1, 0))
        rows = (flipped.targets != test.targets).nonzero().flatten()
        return flipped.take(rows.cpu().numpy())
