"""What a peer makes of its own value and those it hears. Written for one peer; `Mixture` is the same for all at once.

Sums go over peers in ascending order, the peer itself in its place, by products and additions that are rounded one by
one: so a peer that speaks to others over a network comes to the bits of a simulation that has all values in one tensor.

    plain       sum_j W_ij x_j
    clipped:T   x_i + sum_j W_ij (x_j - x_i) min(1, T / |x_j - x_i|)      He, Karimireddy, Jaggi 2022 (clipped gossip)
    trimmed:B   number by number: of the values that are heard the B largest and the B smallest are left out, and those
                that remain and the own one count alike                    Fang, Yang, Bajwa 2022 (BRIDGE-T)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from atoll import spec
from atoll.peer.weights import Weights

__all__ = ["KINDS", "Mixture", "average", "largest"]

KINDS: dict[str, tuple[spec.Parameter, ...]] = {
    "plain": (),
    "clipped": (spec.number("tau", above=0),),
    "trimmed": (spec.whole("few", at_least=1),),
}


def average(values: Sequence[Tensor], weights: Sequence[float], into: Tensor | None = None) -> Tensor:
    """The sum of values by weight, in their order; a sum that is divided where all weights are one share."""
    first, *rest = values
    total = torch.empty_like(first) if into is None else into
    if not rest and weights[0] == 1.0:
        return total.copy_(first)
    if all(weight == weights[0] for weight in weights) and abs(weights[0] * len(weights) - 1) < 1e-12:
        if rest:
            torch.add(first, rest[0], out=total)
        for value in rest[1:]:
            total.add_(value)
        return total.div_(len(weights))
    torch.mul(first, weights[0], out=total)
    scratch = torch.empty_like(first)
    for value, weight in zip(rest, weights[1:], strict=True):
        total.add_(torch.mul(value, weight, out=scratch))  # `add(alpha)` may fuse, and round otherwise
    return total


def largest(values: Sequence[Tensor], into: Tensor | None = None) -> Tensor:
    """The largest of the values, number by number."""
    total = values[0].clone() if into is None else into.copy_(values[0])
    for value in values[1:]:
        torch.maximum(total, value, out=total)
    return total


def _clipped(values: Sequence[Tensor], weights: Sequence[float], own: int, tau: float) -> Tensor:
    mine = values[own]
    total = mine.clone()
    for at, (value, weight) in enumerate(zip(values, weights, strict=True)):
        if at != own:
            apart = value - mine
            length = float(torch.linalg.vector_norm(apart, dtype=torch.float64))
            if length == length and length != float("inf"):  # of nothing finite, nothing is taken
                total.add_(apart.mul_(weight * min(1.0, tau / length) if length > 0 else 0.0))
    return total


def _trimmed(values: Sequence[Tensor], own: int, few: int) -> Tensor:
    mine = values[own]
    others = [value for at, value in enumerate(values) if at != own]
    if len(others) <= 2 * few:
        return mine.clone()
    rest = torch.stack(others).sort(0).values[few : len(others) - few]
    return average([mine, *rest], (1 / (len(rest) + 1),) * (len(rest) + 1))


@dataclass(frozen=True)
class Mixture:
    """How peers mix what they hear: "plain", "clipped:TAU" or "trimmed:FEW"."""

    name: str = "plain"
    tau: float = 0.0
    few: int = 0

    @staticmethod
    @lru_cache(maxsize=64)
    def parse(text: str) -> Mixture:
        """Raises ConfigError."""
        call = spec.parse(text, "mixing")
        return Mixture(call.name, **call.read(KINDS))

    @property
    def plain(self) -> bool:
        return self.name == "plain"

    def one(
        self, values: Sequence[Tensor], weights: Sequence[float], own: int, into: Tensor | None = None
    ) -> Tensor:
        """What one peer makes of these values (ascending by peer; `own` is the place of its own among them)."""
        if self.plain:
            return average(values, weights, into)
        if self.name == "clipped":
            found = _clipped(values, weights, own, self.tau)
        else:
            found = _trimmed(values, own, self.few)
        return found if into is None else into.copy_(found)

    def all(self, values: Tensor, weights: Weights, most: bool = False) -> Tensor:
        """The same for all peers at once, values [peers, ...]; with `most` the largest in the place of a mean."""
        found = torch.empty_like(values)
        done: dict[int, int] = {}
        for peer, number in enumerate(weights.row.tolist()):
            if number in done and (self.plain or most):
                found[peer] = found[done[number]]
                continue
            done[number] = peer
            row = weights.rows[number]
            heard = [values[other] for other in row.peers]
            if most:
                largest(heard, found[peer])
            else:
                self.one(heard, row.weights, row.peers.index(peer), found[peer])
        return found
