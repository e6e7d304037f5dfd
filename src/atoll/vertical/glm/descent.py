"""A party's own part of the descent: its weights, its optimiser, and its half of the model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoll.errors import DivergedError
from atoll.optimizers import Optimizer
from atoll.seeds import rng
from atoll.tensors import Record, Tensors
from atoll.vertical.side import FloatArray

__all__ = ["Descent", "Rows", "batches"]

Rows = NDArray[np.int64]


def batches(rows: int, most: int, seed: int, epoch: int) -> list[Rows]:
    """The rows of each batch of an epoch, alike at all parties; sizes differ by one at most.

    One batch has all rows in their order.
    """
    count = -(-rows // most)
    order = rng(seed, "glm.batches", epoch).permutation(rows) if count > 1 else np.arange(rows)
    return list(np.array_split(order, count))


class Descent:
    """Weights that go down a gradient.

    L2 is added to the gradient; L1 is a proximal step after the optimiser's, which makes weights exactly 0. Neither
    touches the intercept.

    Args:
        weights: [d, scores] where the run begins; `intercept` [scores] at the guest, None elsewhere.
        half: where it goes on.
    """

    def __init__(
        self, solver: Optimizer, lr: float, l1: float, l2: float,
        weights: FloatArray, intercept: FloatArray | None, half: Record | None,
    ) -> None:  # fmt: skip
        self.solver, self.lr, self.l1, self.l2 = solver, lr, l1, l2
        if half is None:
            self.params = Tensors(weights=torch.from_numpy(weights))
            if intercept is not None:
                self.params["intercept"] = torch.from_numpy(intercept)
            self.state, self.stopped = solver.init(self.params), False
        else:
            self.params = Tensors({name: half[name] for name in ("weights", "intercept") if name in half})
            self.state, self.stopped = half.optimizer, bool(half.stopped)
        self.before = self.params

    @property
    def weights(self) -> FloatArray:
        """[d, scores]."""
        return np.asarray(self.params["weights"].numpy())

    @property
    def intercept(self) -> FloatArray:
        """[scores]; of the guest."""
        return np.asarray(self.params["intercept"].numpy())

    def step(self, gradient: FloatArray) -> None:
        """One step.

        Args:
            gradient: [d, scores] without L2, at the guest with that of the intercept as its last row.

        Raises DivergedError where it leaves what can be computed with.
        """
        weights = self.params["weights"]
        whole = torch.from_numpy(gradient)
        own = Tensors(weights=whole[: len(weights)] + self.l2 * weights)
        if "intercept" in self.params:
            own["intercept"] = whole[len(weights)]
        self.params, self.state = self.solver.update(own, self.state, self.params, self.lr)
        if self.l1:
            self.params["weights"] = torch.nn.functional.softshrink(self.params["weights"], self.lr * self.l1)
        if not all(bool(torch.isfinite(value).all()) for value in self.params.values()):
            raise DivergedError("the weights are not finite any more", hint="a smaller lr may help")

    def moved(self) -> float:
        """The largest change of a weight since the last call, or since the beginning."""
        parts = [(value - self.before[name]).abs().flatten() for name, value in self.params.items()]
        self.before = self.params
        whole = torch.cat(parts)
        return float(whole.max()) if len(whole) else 0.0

    def half(self, fixed: Mapping[str, Tensor], running: bool) -> Record:
        """This party's part of the model, with what a run that goes on needs besides."""
        made = Record({**self.params.map(torch.clone), **fixed})
        return made.replace(optimizer=self.state, stopped=self.stopped) if running else made
