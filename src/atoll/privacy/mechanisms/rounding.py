"""From real to whole numbers at random, and how long a rounded vector can be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atoll.errors import ConfigError
from atoll.privacy.source import Draws

__all__ = ["rounded", "rounded_l1", "rounded_l2"]

_TRIES = 1000


def rounded_l2(clip: float, dimension: int, slack: float = math.exp(-0.5)) -> float:
    """The L2 length that `rounded` allows a vector of length `clip` and that `dimension`, in the rounded units.

    The lesser of clip + sqrt(dimension) and of a length that at most a share `slack` of roundings exceeds (0: the
    first alone). Kairouz, Liu and Steinke, ICML 2021, section 4.1.
    """
    if not (clip > 0 and dimension >= 1 and 0 <= slack < 1):
        raise ConfigError(
            f"no length for clip {clip!r}, dimension {dimension!r}, slack {slack!r}",
            hint="clip is above 0, dimension 1 or more, slack from 0 to below 1",
        )
    surely = clip + math.sqrt(dimension)
    if slack == 0:
        return surely
    tail = math.sqrt(2 * math.log(1 / slack)) * (clip + math.sqrt(dimension) / 2)
    return min(surely, math.sqrt(clip**2 + dimension / 4 + tail))


def rounded_l1(l2: float, dimension: int) -> float:
    """The L1 length of a vector of whole numbers of L2 length at most `l2`: no entry is smaller than its square."""
    return l2 * min(math.sqrt(dimension), l2)


def rounded(values: Tensor, clip: float, draws: Draws, slack: float = math.exp(-0.5)) -> Tensor:
    """Each number up or down to a whole one, so that it keeps its mean, int64; drawn again until `rounded_l2` holds.

    `values` [n] are scaled already, of L2 length at most `clip`, which is checked.  Raises ConfigError where they
    are longer.
    """
    exact = values.to(torch.float64)
    if not float(torch.linalg.vector_norm(exact)) <= clip * (1 + 1e-6):
        raise ConfigError(f"values are longer than clip = {clip:g}, or not finite", hint="clip them first")
    most = rounded_l2(clip, values.numel(), slack)
    low = exact.floor()
    for _ in range(_TRIES):
        up = (
            torch.from_numpy(draws.uniform(values.numel())).to(exact.device) < exact.flatten() - low.flatten()
        )
        found = low + up.reshape(low.shape)
        if float(torch.linalg.vector_norm(found)) <= most:
            return found.to(torch.int64)
    raise ConfigError(f"no rounding in {_TRIES} is short enough", hint="give a larger slack")
