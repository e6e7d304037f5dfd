"""Noise: normal and Laplace, over whole numbers, and correlated over rounds; and what a round's clip should be next."""

from __future__ import annotations

from .adaptive import next_clip, noisy_fraction, split
from .banded import Banded
from .continuous import gaussian, laplace, noised
from .discrete import discrete_gaussian, skellam
from .rounding import rounded, rounded_l1, rounded_l2
from .trees import Tree

__all__ = [
    "Banded", "Tree", "discrete_gaussian", "gaussian", "laplace", "next_clip", "noised", "noisy_fraction", "rounded",
    "rounded_l1", "rounded_l2", "skellam", "split",
]  # fmt: skip
