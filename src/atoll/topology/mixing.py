"""What a peer makes of its own value and those it hears. Written for one peer; `Mixture` is the same for all at once.

Sums go over peers in ascending order, the peer itself in its place, by products and additions that are rounded one by
one: so a peer that speaks to others over a network comes to the bits of a simulation that has all values in one tensor.

    plain       sum_j W_ij x_j
    clipped:T   x_i + sum_j W_ij (x_j - x_i) min(1, T / |x_j - x_i|)      He, Karimireddy, Jaggi 2022 (clipped gossip)
    trimmed:B   number by number: of the values that are heard the B largest and the B smallest are left out, and those
                that remain and the own one count alike                    Fang, Yang, Bajwa 2022 (BRIDGE-T)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from atoll import spec
from atoll.topology.fixed import Fixed
from atoll.topology.weights import Weights

__all__ = ["KINDS", "Mixture", "average", "largest", "mixings"]

KINDS: dict[str, tuple[spec.Parameter, ...]] = {
    "plain": (),
    "clipped": (spec.number("tau", above=0),),
    "trimmed": (spec.whole("few", at_least=1),),
    "masked": (spec.number("range", above=0, below=math.inf, optional=True),),
}


_SAID = {
    "plain": "the mean by weight",
    "clipped": "what differs from one's own by more than tau is shortened to that (clipped gossip)",
    "trimmed": "number by number, the few largest and the few smallest are left out (BRIDGE-T)",
    "masked": "the mean by weight, of which a peer learns the sum alone; numbers of models lie within the range, 32",
}


def mixings() -> list[tuple[str, str]]:
    """How each rule is written, and what it does."""
    return [(spec.usage(name, takes), _SAID[name]) for name, takes in KINDS.items()]


_BAGS = 64  # rows from which sums in bags pay
_STRIP = 256  # columns that are mixed at a time


def average(values: Sequence[Tensor], weights: Sequence[float], into: Tensor | None = None) -> Tensor:
    """The sum of values by weight, in their order; a sum that is divided where all weights are one share."""
    first, *rest = values
    total = torch.empty_like(first) if into is None else into
    if not rest and weights[0] == 1.0:
        return total.copy_(first)
    if _equal(weights):
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


def _equal(weights: Sequence[float]) -> bool:
    """Whether all weights are one share of 1."""
    return abs(weights[0] * len(weights) - 1) < 1e-12 and all(weight == weights[0] for weight in weights)


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


def _many(values: Tensor, weights: Weights) -> bool:
    """Whether there are so many rows, long ones and each of equal weights, that sums in bags pay."""
    fits = values.dtype == torch.float32 and values.device.type == "cpu" and values.numel() > 0
    count, terms = len(weights.rows), sum(len(row.peers) for row in weights.rows)
    return fits and count >= _BAGS and terms >= 6 * count and all(_equal(row.weights) for row in weights.rows)


def _bags(values: Tensor, weights: Weights) -> Tensor:
    """`average` for every row, by the same additions in the same order; a strip of columns at a time stays in cache."""
    sizes = torch.tensor([len(row.peers) for row in weights.rows])
    whose = torch.tensor([peer for row in weights.rows for peer in row.peers])
    starts, place = sizes.cumsum(0) - sizes, torch.from_numpy(weights.row)
    alike = len(weights.rows) == weights.peers  # then rows stand in the order of peers
    found, counts = torch.empty_like(values), sizes.to(values.dtype).unsqueeze(1)
    for start in range(0, values.shape[1], _STRIP):
        strip = values[:, start : start + _STRIP].contiguous()
        sums = embedding_bag(whose, strip, starts, mode="sum").div_(counts)
        found[:, start : start + _STRIP] = sums if alike else sums[place]
    return found


@dataclass(frozen=True)
class Mixture:
    """How peers mix what they hear: "plain", "clipped:TAU", "trimmed:FEW" or "masked:RANGE"."""

    name: str = "plain"
    tau: float = 0.0
    few: int = 0
    range: float = 32.0

    @staticmethod
    @lru_cache(maxsize=64)
    def parse(text: str) -> Mixture:
        """Raises ConfigError."""
        call = spec.parse(text, "mixing")
        return Mixture(call.name, **call.read(KINDS))

    @property
    def plain(self) -> bool:
        return self.name == "plain"

    @property
    def masked(self) -> bool:
        """Whether a peer learns no more than the sum of what it hears."""
        return self.name == "masked"

    @property
    def sums(self) -> bool:
        """Whether it is a sum by weight, which is one for all who hear the same."""
        return self.plain or self.masked

    def one(
        self, values: Sequence[Tensor], weights: Sequence[float], own: int, into: Tensor | None = None
    ) -> Tensor:
        """What one peer makes of these values (ascending by peer; `own` is the place of its own among them)."""
        if self.plain or len(values) == 1:
            return average(values, weights, into)
        if self.masked:
            fixed, total = (
                Fixed.of(self.range, weights, own),
                torch.zeros_like(values[own], dtype=torch.int32),
            )
            for value, weight in zip(values, weights, strict=True):
                total.add_(fixed.share(value, weight))
            found = fixed.opened(total, values[own])
        elif self.name == "clipped":
            found = _clipped(values, weights, own, self.tau)
        else:
            found = _trimmed(values, own, self.few)
        return found if into is None else into.copy_(found)

    def all(self, values: Tensor, weights: Weights, most: bool = False) -> Tensor:
        """The same for all peers at once, values [peers, d]; with `most` the largest in the place of a mean."""
        if self.plain and not most and _many(values, weights):
            return _bags(values, weights)
        found = torch.empty_like(values)
        done: dict[int, int] = {}
        for peer, number in enumerate(weights.row.tolist()):
            if number in done and (self.sums or most):
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
