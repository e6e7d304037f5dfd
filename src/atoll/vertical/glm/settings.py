"""The settings of a generalised linear model, as its roles need them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atoll.optimizers import optimizer
from atoll.vertical.glm.descent import Descent
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.side import FloatArray

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """What both modes have; `GLM` says what each means."""

    epochs: int = 30
    batch: int = 4096
    lr: float = 0.15
    optimizer: str = "sgd:0.9"
    l1: float = 0.0
    l2: float = 0.0
    tolerance: float = 0.0

    def shared(self, case: Case) -> str:
        """What all parties must agree on, in words."""
        return (
            f"{case.task}, {case.crypto}, seed {case.seed}, {self.epochs} epochs of batches of {self.batch},"
            f" tolerance {self.tolerance:g}"
        )

    def whole(self, case: Case) -> str:
        """What parties must agree on where each holds shares of the other's weights."""
        return f"{self.shared(case)}, {self.optimizer} with lr {self.lr:g}, l2 {self.l2:g}"

    def descent(self, columns: int, scores: int, intercept: FloatArray | None, progress: Progress) -> Descent:
        """Weights that begin at 0, or where a run goes on."""
        return Descent(
            optimizer(self.optimizer), self.lr, self.l1, self.l2,
            np.zeros((columns, scores)), intercept, progress.half,
        )  # fmt: skip
