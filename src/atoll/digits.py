"""Numbers with few digits, as events have them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["restored", "shortened"]


def shortened(values: Sequence[float], digits: int = 5) -> list[float | None]:
    """Values with so many significant digits, None where they are not finite."""
    v = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(v)
    known = np.where(finite, v, 0.0)
    scale = 10.0 ** (digits - 1 - np.floor(np.log10(np.maximum(np.abs(known), 1e-300))))
    short = np.round(known * scale) / scale
    return [x if ok else None for x, ok in zip(short.tolist(), finite.tolist(), strict=True)]


def restored(values: Sequence[float | None]) -> list[float]:
    """The inverse of `shortened`: NaN for None."""
    return [float("nan") if v is None else v for v in values]
