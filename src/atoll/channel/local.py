"""Noise that each client adds itself: differential privacy against the server as well."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atoll import seeds
from atoll.channel.clip import Clip
from atoll.channel.transform import Place, Setting, Transform, Update, plainly, standing
from atoll.errors import ConfigError
from atoll.privacy.mechanisms import gaussian, laplace, noised
from atoll.privacy.source import Source
from atoll.tensors import Record, Tensors, leaves, map_leaves

__all__ = ["Local"]


@dataclass(frozen=True)
class Local(Transform):
    """Noise on every client's update before it leaves.   Dwork et al., TCC 2006; Duchi et al., FOCS 2013

    u <- u + z C * noise, C the bound of the `Clip` before it and noise standard normal; or Laplace of scale 1, for
    which the bound must be one of the L1 norm (``clip:0.5,order=1``). Nobody needs to be trusted, and far more noise is
    needed for the same epsilon than where the sum is blurred (`Noise`). In a simulation the noise follows from the
    run's seed, and protects nobody; a node draws it from a secret of its own.

    Args:
        multiplier: z.
        kind: "gaussian" or "laplace".
    """

    multiplier: float
    kind: Literal["gaussian", "laplace"] = "gaussian"
    at: int = 0
    """Where in the chain the bound is, and `bound` itself; a chain fills them in."""
    bound: Clip | None = None
    source: Source | None = field(default=None, compare=False, repr=False)
    """A node's own randomness (`drawing`)."""

    name: ClassVar[str] = "local"
    place: ClassVar[Place] = "blur"
    needs: ClassVar[tuple[str, ...]] = ("clip",)

    def __post_init__(self) -> None:
        self._require("multiplier", 0 <= self.multiplier < math.inf, "must be 0 or above, and finite")

    @property
    def text(self) -> str:
        more = "" if self.kind == "gaussian" else f",{self.kind}"
        return f"{self.name}:{plainly(self.multiplier)}{more}"

    def fitted(self, before: tuple[Transform, ...], setting: Setting) -> Local:
        at, bound = standing(before, Clip)
        order = 1 if self.kind == "laplace" else 2
        if bound.order != order:
            raise ConfigError(
                f"channel {self.text!r}: {self.kind} noise hides what is bounded in the L{order} norm",
                hint=f"write clip:{plainly(bound.norm)}{',order=1' if order == 1 else ''} before it",
            )
        return replace(self, at=at, bound=bound)

    @property
    def hears(self) -> int | None:
        return self.at

    # --- client half ------------------------------------------------------------------------------------------

    def drawing(self, source: Source) -> Local:
        return replace(self, source=source)

    def send(self, update: Update, told: Record, own: Record, key: Tensor) -> tuple[Update, Record]:
        assert self.bound is not None
        size = self.multiplier * self.bound.bound(told).to(key.device)
        if self.source is not None:
            return update._replace(values=self._blurred(update.values, float(size), self.source)), own
        places = iter(range(len(leaves(update.values))))

        def blurred(value: Tensor) -> Tensor:
            stream = seeds.fold(key, next(places))
            if self.kind == "gaussian":
                return value + size * seeds.normal(stream, value.shape, value.dtype)
            u = seeds.uniform(stream, value.shape, value.dtype) - 0.5
            return value - size * torch.sign(u) * torch.log1p(-2 * u.abs())

        return update._replace(values=map_leaves(blurred, update.values)), own

    def _blurred(self, values: Record, size: float, source: Source) -> Record:
        """Values with noise that nobody else can draw."""
        flat = Tensors({str(at): value for at, value in enumerate(leaves(values))})
        draw = gaussian if self.kind == "gaussian" else laplace
        found = iter(noised(flat, draw(flat, size, source.at("local"))).values())
        return map_leaves(lambda _: next(found), values)  # type: ignore[no-any-return]
