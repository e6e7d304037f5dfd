"""A party's half of the model: its own columns, standardised, through one layer of tanh to `hidden` numbers a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.errors import DataError
from atoll.optimizers import Adam
from atoll.tensors import Record, Tensors
from atoll.vertical.side import FloatArray, Side

__all__ = ["Net", "Scaling"]

_ADAM = Adam()


@dataclass(frozen=True)
class Scaling:
    """How a party brings its columns to one scale: by their means and deviations over its own rows."""

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(x: FloatArray) -> Scaling:
        """That of rows [n, d], in which NaN stands for a missing value.  Raises DataError without rows."""
        if not len(x):
            raise DataError("there are no rows to learn from")
        known = ~np.isnan(x)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, x, 0.0).sum(0) / count
        deviation = np.sqrt(np.where(known, (x - mean) ** 2, 0.0).sum(0) / count)
        return Scaling(torch.from_numpy(mean), torch.from_numpy(np.where(deviation > 0, deviation, 1.0)))

    def inputs(self, x: FloatArray) -> Tensor:
        """Rows as the layer reads them, float64 [n, d + 1]: scaled, a missing value as the mean, and a one."""
        scaled = torch.nan_to_num((torch.from_numpy(x) - self.mean) / self.deviation, nan=0.0)
        return torch.cat([scaled, torch.ones(len(x), 1, dtype=torch.float64)], 1)


@dataclass
class Net:
    """u = tanh([x, 1] W), and the optimiser's state.

    Attributes:
        weight: W, float64 [d + 1, hidden].
        optimizer: of Adam, so that a run that goes on ends as one that was never broken off.
    """

    scaling: Scaling
    weight: Tensor
    optimizer: Record

    @staticmethod
    def begin(side: Side, hidden: int, seed: int, role: str) -> Net:
        """One with first weights (Glorot and Bengio 2010) that a role draws by itself."""
        d = side.x.shape[1]
        bound = (6 / (d + 1 + hidden)) ** 0.5
        weight = torch.from_numpy(seeds.rng(seed, f"ftl.{role}").uniform(-bound, bound, size=(d + 1, hidden)))
        weight[-1] = 0
        return Net(Scaling.of(side.x), weight, _ADAM.init(Tensors(weight=weight)))

    @staticmethod
    def of(half: Record) -> Net:
        return Net(Scaling(half.mean, half.deviation), half.weight, half.optimizer)

    def half(self) -> Record:
        return Record(
            weight=self.weight,
            mean=self.scaling.mean,
            deviation=self.scaling.deviation,
            optimizer=self.optimizer,
        )

    def hidden(self, inputs: Tensor) -> Tensor:
        """u, [n, hidden], of inputs [n, d + 1]."""
        return torch.tanh(inputs @ self.weight)

    def step(self, gradient: Tensor, lr: float) -> None:
        """One of Adam's, against the gradient of W."""
        params, self.optimizer = _ADAM.update(
            Tensors(weight=gradient), self.optimizer, Tensors(weight=self.weight), lr
        )
        self.weight = params["weight"]
