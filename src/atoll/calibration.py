"""Whether what a model is sure of happens as often as it says."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["calibration_error", "reliability"]

Rows = np.ndarray[Any, np.dtype[np.float64]]


def reliability(rows: Rows, bins: int = 10) -> Rows:
    """The reliability curve of rows [n, 2], (probability, whether it happened).

    Of each bin of equal width that is not empty: how many, the mean probability, how often it happened [<= bins, 3].
    """
    place = np.minimum((rows[:, 0] * bins).astype(int), bins - 1)
    parts = [rows[place == each] for each in np.unique(place)]
    return np.array([[len(part), *part.mean(0)] for part in parts])


def calibration_error(rows: Rows) -> float:
    """Expected calibration error: the mean over samples of how far their bin is off (Naeini et al., AAAI 2015).

    Of few samples it is too high: a bin of three is off by chance alone.
    """
    many, said, happened = reliability(rows).T
    return float((many * np.abs(said - happened)).sum() / many.sum())
