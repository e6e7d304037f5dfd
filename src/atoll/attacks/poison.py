"""Lies in data: what an attacker makes of its training samples before it does the work of any other client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.attacks.lie import written
from atoll.data import Samples
from atoll.errors import ConfigError
from atoll.spec import Parameter
from atoll.tensors import Record

__all__ = ["Attacker", "Poison"]


class Attacker(NamedTuple):
    """One of those who poison: the `client`, the `nth` of `among` so many, from 0, and the run's seed."""

    client: int
    nth: int
    among: int
    seed: int

    def some(self, rows: Tensor, share: float) -> Tensor:
        """A share of rows [n], at random, at least one where there are any."""
        order = seeds.rng(self.seed, "attack.data", client=self.client).permutation(len(rows))
        many = max(1, round(share * len(rows))) if len(rows) else 0
        return rows[torch.from_numpy(np.sort(order[:many]))]


@dataclass(frozen=True)
class Poison(ABC):
    """What is done to training samples with a class each; a frozen dataclass, whose fields are its settings.

    Attackers work together: what they `learn` from their samples is known to all of them.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[Parameter, ...]] = ()

    @property
    def text(self) -> str:
        """How it is written."""
        return written(self)

    @abstractmethod
    def check(self, example: Samples, classes: int) -> None:
        """Raises ConfigError where it cannot be done to such samples."""

    def learn(self, samples: Samples, classes: int) -> Record:
        """What attackers find in all their samples together."""
        return Record()

    @abstractmethod
    def poisoned(self, samples: Samples, known: Record, attacker: Attacker) -> Samples:
        """An attacker's training samples, as many as there were."""

    @abstractmethod
    def wanted(self, test: Samples, known: Record) -> Samples:
        """Test samples as the attacker would show them to the model, with the classes that it wants for them.

        The share of them that the model falls for is the attack's success. There may be none.
        """

    def _class(self, name: str, value: int, classes: int) -> None:
        if not 0 <= value < classes:
            raise ConfigError(
                f"attack {self.text!r}: {name} = {value}, and there are the classes 0 to {classes - 1}",
                hint=f"write {self.name}:0",
            )
