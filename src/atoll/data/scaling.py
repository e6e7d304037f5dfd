"""Inputs on one scale, by constants that no client could know alone: one round of sums over the clients.

Each client sends three numbers a feature: how many values it has, their sum, and the sum of their squares. Only its
training rows count. What comes back is a mean and a deviation, the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoll.parts import alone

from .samples import IntArray, Samples

__all__ = ["Constants", "agree", "apply"]

Constants = Mapping[str, tuple[float, float]]
"""Feature -> (middle, unit), by which a value becomes (value - middle) / unit."""


def agree(
    train: Samples, clients: Sequence[IntArray], names: Sequence[str], which: NDArray[np.bool_]
) -> Constants:
    """Mean and deviation of the chosen features over all clients' rows; a feature that is constant has the unit 1."""
    sums = np.zeros((3, int(which.sum())))
    for rows in clients:
        own = alone(train.inputs, "scale")[torch.from_numpy(rows)].numpy()[:, which].astype(np.float64)
        there = ~np.isnan(own)
        own = np.where(there, own, 0.0)
        sums += np.stack([there.sum(axis=0), own.sum(axis=0), np.square(own).sum(axis=0)])
    count, total, squares = sums
    mean = total / np.maximum(count, 1)
    deviation = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0.0))
    deviation[deviation <= 1e-7 * np.abs(mean)] = 1.0  # what is left of a constant are rounding errors
    deviation[deviation == 0.0] = 1.0
    chosen = [name for name, scaled in zip(names, which, strict=True) if scaled]
    return {name: (float(m), float(d)) for name, m, d in zip(chosen, mean, deviation, strict=True)}


def apply(inputs: Tensor, names: Sequence[str], constants: Constants) -> Tensor:
    """Inputs by these constants; what was a gap is 0."""
    pairs = [constants.get(name, (0.0, 1.0)) for name in names]
    middle, unit = (torch.tensor(part, dtype=torch.float64) for part in zip(*pairs, strict=True))
    return ((inputs.double() - middle) / unit).nan_to_num_(0.0).float()
