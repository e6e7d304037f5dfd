"""Columns as a linear model needs them: standardised, without gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atoll.errors import DataError
from atoll.tensors import Record
from atoll.vertical.side import FloatArray, Side

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """How a party makes its columns comparable: (x - mean) / scale, and 0, the mean, where a value is missing.

    Attributes:
        means, scales: of the values of the training rows that are there, [d]; the scale of a column that has one value
            only is 1, so that it counts for nothing.
    """

    means: FloatArray
    scales: FloatArray

    @classmethod
    def of(cls, side: Side) -> Columns:
        """From training rows.  Raises DataError without rows, for infinite values and for a column without any."""
        if not len(side):
            raise DataError(
                "there are no rows to learn from", hint="do the parties have identifiers in common?"
            )
        for name, column in zip(side.columns, side.x.T, strict=True):
            if np.isinf(column).any():
                raise DataError(f"column {name!r} has infinite values")
            if np.isnan(column).all():
                raise DataError(f"column {name!r} has no value in any row", hint="leave it out")
        if not side.columns:
            return cls(np.zeros(0), np.zeros(0))
        means, scales = np.nanmean(side.x, axis=0), np.nanstd(side.x, axis=0)
        flat = scales <= 1e-12 * np.maximum(1.0, np.abs(means))
        return cls(means, np.where(flat, 1.0, scales))

    @classmethod
    def held(cls, half: Record) -> Columns:
        """As a half of a model has them."""
        return cls(half.means.numpy(), half.scales.numpy())

    def record(self) -> dict[str, Tensor]:
        """The fields of a half."""
        return {"means": torch.from_numpy(self.means), "scales": torch.from_numpy(self.scales)}

    def apply(self, side: Side) -> FloatArray:
        """Columns to be multiplied with weights, [n, d].  Raises DataError where they are others than those learned."""
        if side.x.shape[1] != len(self.means):
            raise DataError(
                f"there are {side.x.shape[1]} columns, and the model has learned from {len(self.means)}"
            )
        if np.isinf(side.x).any():
            raise DataError("there are infinite values among the columns")
        x: FloatArray = (side.x - self.means) / self.scales
        constant = np.isclose(x, 0.0, rtol=0.0, atol=1e-9)
        x[np.isnan(x) | constant] = 0.0
        return x
