"""What one party has of the rows that all have in common, in their common order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.errors import DataError

__all__ = ["FloatArray", "Side"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """A party's columns of the common rows.

    Attributes:
        x: float64 [n, d], NaN where a value is missing; d may be 0.
        columns: the d names, which stay here.
        y: float64 [n], at the guest: 0 and 1, classes from 0, numbers or counts; None elsewhere.
        exposure: float64 [n] above 0, for counts over unequal spans; None where all are equal, and elsewhere.
    """

    x: FloatArray
    columns: tuple[str, ...]
    y: FloatArray | None = None
    exposure: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.x.shape[1] != len(self.columns):
            raise DataError(f"x is {list(self.x.shape)}, and there are {len(self.columns)} columns")
        for name in ("y", "exposure"):
            values = getattr(self, name)
            if values is not None and values.shape != (len(self.x),):
                raise DataError(f"{name} is {list(values.shape)}, and there are {len(self.x)} rows")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Any) -> Side:
        """The side of these rows."""
        return replace(
            self,
            x=self.x[rows],
            y=None if self.y is None else self.y[rows],
            exposure=None if self.exposure is None else self.exposure[rows],
        )
