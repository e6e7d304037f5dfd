"""A few coordinates of every client's update, enough to see how far and which way clients drift."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from atoll import seeds
from atoll.tensors import Tensors

__all__ = ["COORDINATES", "drift", "likeness", "probe"]

COORDINATES = 4096
_MOST = 1 << 22  # numbers that one round's probes may take in all


def probe(change: Tensors, cohort: int, stacked: bool = False) -> Tensor:
    """Coordinates of a client's change: float32 [s], or [K, s] where changes are `stacked` by client.

    The coordinates are the same for every client, drawn evenly over the tensors and scaled so that inner products
    estimate those of whole changes. Models of up to 4,096 numbers are taken whole, and then inner products are exact.
    Large cohorts get fewer coordinates.
    """
    skip = 1 if stacked else 0
    sizes = tuple(value[0].numel() if stacked else value.numel() for value in change.values())
    parts = []
    chosen = _coordinates(sizes, min(COORDINATES, max(64, _MOST // max(1, cohort))))
    for value, (where, scale) in zip(change.values(), chosen, strict=True):
        flat = value.flatten(skip) if value.ndim > skip else value.unsqueeze(-1)
        if where is not None:
            flat = flat.index_select(skip, where.to(value.device)) * scale
        parts.append(flat)
    return torch.cat(parts, skip).detach().float().cpu()


@lru_cache(maxsize=64)
def _coordinates(sizes: tuple[int, ...], most: int) -> list[tuple[Tensor | None, float]]:
    """For each tensor: which of its numbers are taken (None: all), and the factor that makes up for the others."""
    total = sum(sizes)
    if total <= most:
        return [(None, 1.0) for _ in sizes]
    chosen: list[tuple[Tensor | None, float]] = []
    for at, size in enumerate(sizes):
        count = min(size, max(1, round(most * size / total)))
        where = np.sort(seeds.rng(0, "probe", client=at).choice(size, count, replace=False))
        chosen.append((torch.from_numpy(where), float(np.sqrt(size / count)) if size else 1.0))
    return chosen


def drift(probes: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(norms [K], cosines to the weighted mean [K]) from K probes, in float64."""
    each = torch.stack(list(probes)).double()
    share = torch.tensor(weights, dtype=torch.float64)
    mean = (share / share.sum().clamp(min=1e-300)) @ each
    norms, unit = _directions(each)
    return norms, unit @ (mean / mean.norm().clamp(min=1e-300))


def likeness(probes: Sequence[Tensor]) -> Tensor:
    """Cosines between the changes of clients [K, K] from K probes, in float64."""
    _, unit = _directions(torch.stack(list(probes)).double())
    return unit @ unit.T


def _directions(each: Tensor) -> tuple[Tensor, Tensor]:
    """Norms [K] of the rows [K, s], and the rows divided by them."""
    norms = torch.linalg.vector_norm(each, dim=1)
    return norms, each / norms.clamp(min=1e-300).unsqueeze(1)
