"""Normal and Laplace noise on named tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.privacy.source import Draws
from atoll.tensors import Tensors

__all__ = ["gaussian", "laplace", "noised", "normal"]


def gaussian(like: Tensors, deviation: float | Tensor, draws: Draws | Tensor) -> Tensors:
    """Normal noise of that deviation, in the shapes of `like`.

    From `Draws`: float64, whatever the types of `like`, for `noised` to add; on the devices of `like`. From a
    scalar int64 tensor, an address (`atoll.seeds`): in the types of `like`, a pure function that may be traced
    and batched, but repeatable and of 24 random bits: for simulations, never private.
    """
    return _noise(like, deviation, draws, normal, seeds.normal)


def laplace(like: Tensors, scale: float | Tensor, draws: Draws | Tensor) -> Tensors:
    """Laplace noise of that scale (deviation / sqrt 2), as `gaussian` draws it."""
    return _noise(like, scale, draws, _laplace, _keyed_laplace)


def noised(values: Tensors, noise: Tensors) -> Tensors:
    """Values plus noise, added in float64 and rounded to the types of the values.

    What is released then has far fewer digits than the noise. That hides most of how floating-point noise differs
    from the mathematics (Mironov 2012), and proves nothing; noise over whole numbers (`discrete`) has no such
    gap.
    """
    return values.map_names(lambda name, value: (value.to(torch.float64) + noise[name]).to(value.dtype))


def _noise(
    like: Tensors,
    scale: float | Tensor,
    draws: Draws | Tensor,
    secret: Callable[[Draws, int], np.ndarray[tuple[int], np.dtype[np.float64]]],
    keyed: Callable[[Tensor, Sequence[int], torch.dtype], Tensor],
) -> Tensors:
    found = {}
    for number, (name, value) in enumerate(like.items()):
        if isinstance(draws, Tensor):
            found[name] = scale * keyed(seeds.fold(draws, number), value.shape, value.dtype)
        else:
            flat = torch.from_numpy(secret(draws, value.numel()))
            found[name] = scale * flat.reshape(value.shape).to(value.device)
    return Tensors(found)


def normal(draws: Draws, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """`count` standard normal numbers, float64."""
    half = (count + 1) // 2  # Box-Muller gives pairs
    radius = np.sqrt(-2.0 * np.log1p(-draws.uniform(half)))
    angle = (2.0 * np.pi) * draws.uniform(half)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _laplace(draws: Draws, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    size = -np.log1p(-draws.uniform(count))
    return np.where(draws.words(count) & np.uint64(1), size, -size)


def _keyed_laplace(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    size = -torch.log1p(-seeds.uniform(seeds.fold(key, 1), shape))
    return torch.where(seeds.uniform(seeds.fold(key, 2), shape) < 0.5, size, -size).to(dtype)
