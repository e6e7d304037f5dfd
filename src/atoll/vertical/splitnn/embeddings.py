"""Differential privacy of embeddings: none longer than C, and normal noise on each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll.privacy import Fixed, Gaussian, epsilon, usual_delta
from atoll.privacy.mechanisms.continuous import normal
from atoll.privacy.source import Draws, Source

__all__ = ["Blur", "key_of", "spent"]


@dataclass(frozen=True)
class Blur:
    """h <- h min(1, C/|h|) + N(0, (noise C)^2 I).

    Args:
        clip: C; None shortens nothing.
        noise: the deviation of each number, in clips; 0 adds none.
    """

    clip: float | None
    noise: float

    def bound(self, h: Tensor) -> Tensor:
        """Embeddings [b, d] no longer than C, of which gradients go on."""
        if self.clip is None:
            return h
        length: Tensor = h.norm(dim=1, keepdim=True).clamp(min=self.clip)
        return h * (self.clip / length)

    def noised(self, h: Tensor, draws: Draws) -> Tensor:
        """What is sent of them."""
        if self.clip is None or not self.noise:
            return h.detach()
        drawn = torch.from_numpy(normal(draws, h.numel())).reshape(h.shape)
        return (h.detach().double() + self.noise * self.clip * drawn).to(h.dtype)


def spent(noise: float, rows: int, epochs: int, delta: float | None) -> float:
    """The epsilon at `delta` (rows^-1.1 where none is given) of a row's embeddings, each sent once in every epoch.

    Neighbours differ in one row's columns, which moves an embedding by up to 2C: `epochs` Gaussian mechanisms
    together, exactly (Balle and Wang, ICML 2018). It is about what a row's own embeddings tell where the network that
    made them is known. That later networks, and so other rows' embeddings, were learned from the row as well is not in
    it; nor are epochs that broke off, nor scores that are asked for, each of which sends an embedding once more.
    """
    if not epochs:
        return 0.0
    if not noise:
        return math.inf
    event = Gaussian(noise=noise, sampling=Fixed(rows, rows), count=epochs)
    return epsilon([event], usual_delta(rows) if delta is None else delta).epsilon


def key_of(seed: int | None) -> Source:
    """Where a party's noise comes from: the operating system, or a seed, where an experiment shall repeat."""
    return Source() if seed is None else Source.repeatable(seed)
