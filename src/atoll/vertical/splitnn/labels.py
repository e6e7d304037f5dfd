"""Labels kept from those who get gradients back: noise by largest norm or by MARVELL, or labels that may be wrong."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from atoll import spec
from atoll.errors import ConfigError
from atoll.privacy.mechanisms.continuous import normal
from atoll.privacy.source import Draws, Source
from atoll.vertical.side import FloatArray
from atoll.vertical.splitnn.marvell import Noise, enough_noise, kl_for, least_noise

__all__ = ["Marvell", "MaxNorm", "Protection", "noise_for", "responses", "truthful"]

_KNOWN: dict[str, tuple[spec.Parameter, ...]] = {
    "max_norm": (),
    "marvell": (
        spec.number("power", above=0, below=math.inf, optional=True),
        spec.number("bound", above=0.5, below=1, optional=True),
    ),
    "response": (spec.number("epsilon", above=0, below=math.inf),),
}


def read(text: str | None) -> tuple[str | None, dict[str, float]]:
    """The name and the numbers of a text: "max_norm", "marvell:4", "marvell:bound=0.65", "response:1".

    Raises ConfigError.
    """
    if text is None:
        return None, {}
    call = spec.parse(text, "labels")
    given = call.read(_KNOWN)
    if len(given) > 1:
        raise ConfigError(f"labels = {text!r} has a power and a bound", hint="one follows from the other")
    return call.name, given


class Protection(ABC):
    """Noise on the gradients [b, d] that go back to one host."""

    @abstractmethod
    def __call__(self, g: Tensor, positive: Tensor, draws: Draws) -> Tensor:
        """The gradients to send.

        Args:
            g: a row's gradient, [b, d].
            positive: whether a row is, bool [b].
        """

    def kl(self) -> float | None:
        """Mean KL of the messages of the epoch that ended; None where nothing is known of it."""
        return None


@dataclass
class MaxNorm(Protection):
    """Every gradient as long as the longest, in the mean: g <- g (1 + s xi), s^2 = |g_max|^2/|g|^2 - 1.

    Li et al., ICLR 2022, section 3.2. xi is normal, one number a row, so that directions stay and norms do not tell;
    a gradient of length 0 gets noise in all directions.
    """

    def __call__(self, g: Tensor, positive: Tensor, draws: Draws) -> Tensor:
        xi = _normal(draws, (len(g), 1))
        other = _normal(draws, tuple(g.shape))
        square = g.double().square().sum(1, keepdim=True)
        most = square.max()
        s = (most / square.clamp(min=1e-300) - 1).clamp(min=0).sqrt()
        still = other * (most / g.shape[1]).sqrt()
        return torch.where(square > 0, g.double() * (1 + s * xi), still).to(g.dtype)


@dataclass
class Marvell(Protection):
    """The least noise by `atoll.vertical.splitnn.marvell`, with P = power |D|^2.

    A batch of one class gets noise of the last that had both, since its absence would tell; before there was one, the
    same power in all directions, of the mean gradient.

    Args:
        power: of the noise.
        bound: in its place, the AUC that no guess by the gradients of one batch is to exceed.
    """

    power: float = 4.0
    bound: float | None = None
    last: tuple[Noise, Tensor] | None = None
    kls: list[float] = field(default_factory=list)

    def __call__(self, g: Tensor, positive: Tensor, draws: Draws) -> Tensor:
        wide = g.double()
        count = int(positive.sum())
        if 0 < count < len(g):
            self.last = self._fitted(wide, positive, count / len(g))
            self.kls.append(self.last[0].kl)
        across, along = _normal(draws, tuple(g.shape)), _normal(draws, (len(g),))
        if self.last is None:
            size = wide.mean(0).norm() * math.sqrt(self.power / g.shape[1])
            even: Tensor = wide + size * across
            return even.to(g.dtype)
        noise, direction = self.last
        kind = positive.long()
        wider, widest = (
            torch.tensor(each, dtype=torch.float64)[kind] for each in (noise.across, noise.along)
        )
        own = (widest - wider).clamp(min=0).sqrt() * along
        sent: Tensor = wide + wider.sqrt()[:, None] * across + own[:, None] * direction
        return sent.to(g.dtype)

    def _fitted(self, g: Tensor, positive: Tensor, share: float) -> tuple[Noise, Tensor]:
        """The noise for a batch, and the direction of D."""
        means = [g[~positive].mean(0), g[positive].mean(0)]
        u, v = (
            float((g[rows] - mean).square().mean())
            for rows, mean in zip((~positive, positive), means, strict=True)
        )
        gap = means[1] - means[0]
        square = float(gap.square().sum())
        if self.bound is None:
            noise = least_noise(u, v, square, share, g.shape[1], self.power * square)
        else:
            noise = enough_noise(u, v, square, share, g.shape[1], kl_for(self.bound))
        return noise, gap / max(math.sqrt(square), 1e-300)

    def kl(self) -> float:
        found, self.kls, self.last = self.kls, [], None  # each epoch begins anew, as where a run goes on
        return float(np.mean(found)) if found else 0.0


def noise_for(text: str | None) -> Protection | None:
    """The protection of a text, anew for each host."""
    name, given = read(text)
    if name == "max_norm":
        return MaxNorm()
    return Marvell(given.get("power", 4.0), given.get("bound")) if name == "marvell" else None


def truthful(epsilon: float, classes: int) -> float:
    """How often randomised response says the truth: e^epsilon / (e^epsilon + classes - 1).   Warner 1965"""
    return 1 / (1 + (classes - 1) * math.exp(-epsilon))


def responses(y: FloatArray, classes: int, epsilon: float, source: Source) -> FloatArray:
    """Labels of which each is another with a probability that makes it epsilon-differentially private.

    They are drawn once: who learns from them for many epochs learns no more of one.

    Args:
        y: classes from 0, [n].
    """
    draws = source.at("split labels")
    kept = draws.uniform(len(y)) < truthful(epsilon, classes)
    other = draws.below(np.full(len(y), classes - 1, dtype=np.int64))
    lie = (y.astype(np.int64) + 1 + other) % classes
    return np.where(kept, y, lie).astype(np.float64)


def _normal(draws: Draws, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.from_numpy(normal(draws, math.prod(shape))).reshape(shape)
