"""What each task makes of the label and of linear scores z = X w + b: residuals, and what is predicted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atoll.errors import DataError
from atoll.tensors import Record
from atoll.vertical.protocol import Case, Task
from atoll.vertical.side import FloatArray, Side

__all__ = ["Label", "predicted", "scores_of", "slope"]


def scores_of(case: Case) -> int:
    """How many linear scores a row has: one, or one for each class."""
    return case.classes if case.task == "multiclass" else 1


def slope(task: Task) -> float:
    """How a residual depends on the linear score: 1/4 for classes, 1 for numbers."""
    return 0.25 if task in ("binary", "multiclass") else 1.0


@dataclass(frozen=True)
class Label:
    """The label as the guest's part of residuals needs it.

    Attributes:
        target: what is taken from slope * z, [n, scores]: y / 2 for classes with y = +1 or -1, (y - mean) / scale for
            numbers, y / scale for counts.
        exposure: [n], of counts, divided by `scale`.
        mean, scale: of numbers; of counts `scale` is the mean count.
        intercept: where it begins, [scores].
    """

    target: FloatArray
    exposure: FloatArray
    mean: float
    scale: float
    intercept: FloatArray

    @classmethod
    def of(cls, side: Side, case: Case) -> Label:
        """From training rows.  Raises DataError for labels from which nothing can be learned."""
        y = side.y
        if y is None:
            raise DataError("the guest has no label", hint="name the column of the label")
        if not np.isfinite(y).all():
            raise DataError("there are missing or infinite labels")
        ones = np.ones(len(y))
        if case.task in ("binary", "multiclass"):
            count = scores_of(case)
            _classes(y, case.classes)
            own = np.arange(count) if case.task == "multiclass" else np.ones(1)
            return cls(np.where(y[:, None] == own, 0.5, -0.5), ones, 0.0, 1.0, np.zeros(count))
        if case.task == "regression":
            mean, scale = float(y.mean()), float(y.std())
            if scale <= 1e-12 * max(1.0, abs(mean)):
                raise DataError("the label is the same in all rows: there is nothing to learn")
            return cls(((y - mean) / scale)[:, None], ones, mean, scale, np.zeros(1))
        return cls._counts(y, ones if side.exposure is None else side.exposure)

    @classmethod
    def _counts(cls, y: FloatArray, exposure: FloatArray) -> Label:
        if (y < 0).any() or not y.any():
            raise DataError("counts must be 0 or more, and some of them above 0")
        if not (np.isfinite(exposure).all() and (exposure > 0).all()):
            raise DataError("exposures must be above 0")
        scale = float(y.mean())
        start = np.log([y.sum() / exposure.sum()])
        return cls((y / scale)[:, None], exposure / scale, 0.0, scale, start)

    def record(self) -> dict[str, Tensor]:
        """The fields of the guest's half."""
        return {"label": torch.tensor([self.mean, self.scale], dtype=torch.float64)}


def predicted(z: FloatArray, case: Case, half: Record, exposure: FloatArray | None) -> FloatArray:
    """What the guest makes of linear scores [n, scores]; see `Protocol.score`.

    Several classes are learned one against the rest; their probabilities are scaled to sum to 1.
    """
    if case.task == "regression":
        mean, scale = half.label.tolist()
        return np.asarray(z[:, 0] * scale + mean)
    if case.task == "poisson":
        rate: FloatArray = np.exp(z[:, 0])
        return rate if exposure is None else rate * exposure
    chance: FloatArray = 0.5 * (1 + np.tanh(z / 2))
    if case.task == "binary":
        return chance[:, 0]
    return np.asarray(chance / chance.sum(1, keepdims=True))


def _classes(y: FloatArray, count: int) -> None:
    found = np.unique(y)
    if not np.isin(found, np.arange(count)).all():
        raise DataError(f"labels must be classes from 0 to {count - 1}, and {found.max():g} is among them")
    if len(found) < 2:
        raise DataError(f"all rows are of one class, {found[0]:g}: there is nothing to learn")
